"""What prompts say beyond their words: weights, and the negative preset of a job type. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

# A weight beyond 2 tears pictures apart; below 0 there is nothing left to take away.
MIN_WEIGHT, MAX_WEIGHT = 0.0, 2.0

WEIGHTED = re.compile(r"\(([^()]+):\s*(\d+(?:\.\d*)?|\.\d+)\)")


class Fragment(NamedTuple):
    """A piece of a prompt and how much it counts; 1 is plain."""

    text: str
    weight: float


def fragments(prompt: str) -> list[Fragment]:
    """Splits `(word:1.3)`, the notation that people know from other SDXL programs, from plain text.

    Nothing else is notation: brackets without a weight, quotes, plus and minus signs stay the user's own words.
    """
    pieces, end = [], 0
    for match in WEIGHTED.finditer(prompt):
        pieces.append(Fragment(prompt[end : match.start()], 1.0))
        pieces.append(Fragment(match[1], min(MAX_WEIGHT, max(MIN_WEIGHT, float(match[2])))))
        end = match.end()
    pieces.append(Fragment(prompt[end:], 1.0))
    return [piece for piece in pieces if piece.text.strip()] or [Fragment("", 1.0)]


def plain(prompt: str) -> str:
    """The prompt without its weights."""
    return WEIGHTED.sub(lambda match: match[1], prompt)


def is_weighted(prompt: str) -> bool:
    return any(fragment.weight != 1.0 for fragment in fragments(prompt))


def join_negative(preset: str, own: str) -> str:
    """The operator's preset for the job type first, then the user's own negative prompt."""
    return ", ".join(part for part in (preset.strip(" ,\n"), own.strip(" ,\n")) if part)
