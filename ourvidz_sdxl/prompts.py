"""Prompt notation: weighted text, escaped brackets, blank text, and the negative preset of a job type. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# A weight beyond 2 tears pictures apart; below 0 there is nothing left to take away.
MIN_WEIGHT, MAX_WEIGHT = 0.0, 2.0
LARGEST = 1e6  # while weights are multiplied: infinity times zero is no number

# Characters that nothing is drawn for: Unicode's White_Space, Cc and Default_Ignorable_Code_Point, and
# BRAILLE PATTERN BLANK. The same set stands in the database's constraint and in the client, held together by
# tests/integration/test_job_constraints.py and the client's test/validate.test.ts.
BLANK = (
    "\x00-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
NOT_BLANK = re.compile(f"[^{BLANK}]")

TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<open>\()"
    r"|:\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)"
    r"|(?P<close>\))"
    r"|[^\\():]+|.",
    re.DOTALL,
)


class Fragment(NamedTuple):
    """A piece of a prompt and how much it counts; 1 is plain."""

    text: str
    weight: float


def is_blank(text: str) -> bool:
    """Whether nothing can be seen of the text."""
    return not NOT_BLANK.search(text)


def fragments(prompt: str) -> list[Fragment]:
    """Splits a prompt into texts and their weights, in the notation of A1111 and ComfyUI.

    `(text:1.3)` weighs the text by 1.3; blanks around text and number do not count. Nested weights multiply, as in A1111
    (ComfyUI takes the innermost); the product is limited to MIN_WEIGHT..MAX_WEIGHT. A backslash before `(`, `)`, `[`, `]` or
    a backslash makes that sign a letter. Nothing else is notation: brackets without a weight, `[text]`, quotes, plus and
    minus signs stay the user's own text. Linear in the length of the prompt.
    """
    return [piece for piece in _weighted(prompt) if not is_blank(piece.text)] or [Fragment("", 1.0)]


def plain(prompt: str) -> str:
    """The prompt without weights and backslashes, as it is read where nothing is weighed."""
    return "".join(piece.text for piece in _weighted(prompt))


def is_weighted(prompt: str) -> bool:
    return any(fragment.weight != 1.0 for fragment in fragments(prompt))


def join_negative(preset: str, own: str) -> str:
    """The operator's preset for the job type first, then the user's own negative prompt."""
    return ", ".join(part.strip(" ,\n") for part in (preset, own) if not is_blank(part.strip(" ,\n")))


def _weighted(prompt: str) -> Iterator[Fragment]:
    """All text of the prompt, apart at each weighted bracket. Blanks at the edges of weighted text have weight 1."""
    tokens, weights = _tokens(prompt)
    stack, start = [1.0], 0
    for place in [*sorted(weights), len(tokens)]:
        text, weight = "".join(tokens[start:place]), min(MAX_WEIGHT, stack[-1])
        weighted = text if weight == 1 else text.strip()
        before, _, after = text.partition(weighted) if weighted else (text, "", "")
        yield from (Fragment(before, 1.0), Fragment(weighted, weight), Fragment(after, 1.0))
        if tokens[place : place + 1] == ["("]:
            stack.append(min(LARGEST, stack[-1] * weights[place]))
        else:
            stack.pop()
        start = place + 1


def _tokens(prompt: str) -> tuple[list[str], dict[int, float]]:
    """Tokens of the prompt, and the weight at the place of each bracket that is notation. All other tokens are text."""
    tokens: list[str] = []
    weights: dict[int, float] = {}
    open_brackets: list[tuple[int, int]] = []  # place, and how many tokens before it had something to read
    readable = 0
    for place, found in enumerate(TOKEN.finditer(prompt)):
        tokens.append(found["escaped"] or found[0])
        if found["open"]:
            open_brackets.append((place, readable))
            continue
        closes = open_brackets and (found["close"] or found["weight"])
        begin, readable_before = open_brackets.pop() if closes else (place, readable)
        if found["weight"] and readable > readable_before:
            weights[begin] = weights[place] = min(LARGEST, max(MIN_WEIGHT, float(found["weight"])))
        else:
            readable += not is_blank(tokens[place])
    return tokens, weights
