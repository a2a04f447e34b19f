"""Finds terms in a reading of a text: with letters apart, with letters repeated, with digits for letters.

A term is a word or a few. It is found from the beginning of a word to the end of a word, whatever separates its letters between;
so "n u-de" has the term and "essex" has none. Linear in the length of the text: each place is looked at for at most the length of
the longest term.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise

from ourvidz_sdxl.safety.reading import NOT_WORDS, own_script

# What a digit means inside a word; 6 stays itself, so that 16 and 19 differ. i and l become one, as I, l, 1 and | look the same.
KEYS = str.maketrans("012345789l", "oizeastbgi")
LIKE_DIGITS = frozenset("0123456789oil")  # what is read as a digit in an age
PHRASE_WORDS = 5  # the longest ordinary phrase


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A term in a reading; `start` and `end` count its letters, without the spaces, and a repeated letter once."""

    group: str
    start: int
    end: int
    harmless: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Term:
    group: str
    runs: tuple[int, ...]  # how often each letter stands in a row
    digits: tuple[int, ...]  # with how many digits each of these rows ends; it is no longer than that then
    inside: bool  # also within a longer word
    whole: bool  # only as one whole word: too short for anything else


@dataclass(slots=True)
class _Node:
    """Of a trie along whose paths no letter stands twice in a row."""

    following: dict[str, _Node] = field(default_factory=dict)
    terms: list[_Term] = field(default_factory=list)


class Finder:
    """Knows the terms of each group.

    In a term, "/" parts the endings ("molest/ed/ing"), and "~" in front allows it within a longer word. `ordinary` are words and
    phrases in which nothing is found, since they only look like a term; in `harmless` ones, what is found is marked.
    """

    def __init__(self, groups: Iterable[tuple[str, Iterable[str]]], *, ordinary: Iterable[str], harmless: Iterable[str]) -> None:
        self._root, self._inside = _Node(), _Node()
        self._ordinary, self._harmless = _spelt(ordinary), _spelt(harmless)
        for group, terms in groups:
            for term in terms:
                for spelling in spellings(term.removeprefix("~")):
                    self._learn(group, spelling, inside=term.startswith("~"))

    def find(self, reading: str) -> list[Match]:
        """`reading` as `readings` yields it."""
        return list(_Text(reading.split(), self._ordinary, self._harmless).matches(self._root, self._inside))

    def _learn(self, group: str, spelling: str, *, inside: bool) -> None:
        letters = NOT_WORDS.sub("", own_script(spelling))
        rows = ["".join(row) for _, row in groupby(letters, lambda letter: letter.translate(KEYS))]
        term = _Term(
            group=group,
            runs=tuple(map(len, rows)),
            digits=tuple(len(row) - len(row.rstrip("0123456789")) for row in rows),
            inside=inside,
            whole=len(letters) < 3 and letters.isascii(),
        )
        for node in (self._root, self._inside)[: 1 + inside]:
            for row in rows:
                node = node.following.setdefault(row[0].translate(KEYS), _Node())
            node.terms.append(term)


def spellings(term: str) -> Iterator[str]:
    """`"molest/ed/ing"` -> molest, molested, molesting."""
    stem, *endings = term.split("/")
    yield stem
    yield from (stem + ending for ending in endings)


def _spelt(terms: Iterable[str]) -> frozenset[str]:
    return frozenset(spelling for term in terms for spelling in spellings(term))


class _Text:
    """A reading, its words written together: letter i is `plain[i]`, known as `key[i]`."""

    def __init__(self, words: list[str], ordinary: Collection[str], harmless: Collection[str]) -> None:
        self.plain = "".join(words)
        self.key = self.plain.translate(KEYS)
        bounds = [0, *accumulate(map(len, words))]
        self.word_end = [end for word, end in zip(words, bounds[1:], strict=True) for _ in word]
        self.word_bounds = set(bounds)
        self.in_number = [word.isdigit() for word in words for _ in word]
        self.digits_before = list(accumulate(map(str.isdigit, self.plain), initial=0))
        self.letters_before = list(accumulate(map(str.isalpha, self.plain), initial=0))
        self.row_end = _row_ends(self.key)
        self.row = list(accumulate((a != b for a, b in pairwise(self.key)), initial=0))  # the number of each letter's row
        self.ordinary_until = self._covered(words, bounds, ordinary)
        self.harmless_until = self._covered(words, bounds, harmless)
        self.edge_from = self._edges(self.word_bounds)

    def matches(self, root: _Node, inside: _Node) -> Iterator[Match]:
        """In the order of their beginnings, and of their ends where those are the same."""
        parts = {place for start in range(len(self.plain)) for _, end in self._found(start, inside) for place in (start, end)}
        if parts:  # what is glued to such a term is a word as well
            self.edge_from = self._edges(self.word_bounds | parts)
        for start in range(len(self.plain)):
            for term, end in self._found(start, root if self.edge_from[start] == start else inside):
                harmless = self.harmless_until[start] >= end
                yield Match(group=term.group, start=self.row[start], end=self.row[end - 1] + 1, harmless=harmless)

    def _found(self, start: int, node: _Node) -> Iterator[tuple[_Term, int]]:
        """The terms that begin at `start`, each with its end."""
        rows: list[int] = []
        at = start
        while at < len(self.key) and (following := node.following.get(self.key[at])) is not None:
            node, rows = following, [*rows, self.row_end[at] - at]
            for term in node.terms:
                end = self._end(term, start, at, rows)
                if end is not None and self.ordinary_until[start] < end:
                    yield term, end
            at = self.row_end[at]

    def _end(self, term: _Term, start: int, last_row: int, rows: list[int]) -> int | None:
        """Where `term` ends, if the rows of letters from `start` on are its own, or longer ones where they may be."""
        at, in_number = start, False
        for row, run, digits in zip(rows, term.runs, term.digits, strict=True):
            if row < run or (digits and row > run and at != last_row):
                return None
            number = at + run - digits
            if digits and (self.plain[at + run - 1] not in LIKE_DIGITS or not (in_number or self._begins_number(number, start))):
                return None
            at, in_number = at + row, digits > 0
        least = last_row + term.runs[-1]
        most = least if term.digits[-1] else self.row_end[last_row]
        end = self.edge_from[least]
        if end > most:
            if not (term.inside and least <= self.word_end[start]):
                return None
            end = least
        if term.whole and (start not in self.word_bounds or end != self.word_end[start] or end - start > sum(term.runs)):
            return None
        # "1011" is no word and "is years old" no age, whatever a digit may mean.
        wanted = self.digits_before if any(term.digits) else self.letters_before
        return end if wanted[end] > wanted[start] else None

    def _begins_number(self, place: int, start: int) -> bool:
        """Whether no digits stand before that belong to a number: "age 30" is not "age 0" with an e repeated."""
        if place == start or not self.plain[place - 1].isdigit():
            return True
        return place in self.word_bounds and not self.in_number[place - 1]

    def _edges(self, known: Collection[int]) -> list[int]:
        """For each place the next one, itself included, where a word may begin or end: those known, and wherever a letter meets a
        digit or another script, and around each Chinese character."""
        kinds = [_kind(letter) for letter in self.plain]
        nearest, edges = len(kinds), [len(kinds)] * (len(kinds) + 1)
        for place in range(len(kinds) - 1, -1, -1):
            if place in known or kinds[place] != kinds[place - 1] or kinds[place] == "han":
                nearest = place
            edges[place] = nearest
        return edges

    def _covered(self, words: list[str], bounds: list[int], phrases: Collection[str]) -> list[int]:
        """For each place how far the phrases reach that begin at or before it."""
        reach = [0] * (len(self.plain) + 1)
        for first in range(len(words)):
            for last in range(first + 1, min(first + PHRASE_WORDS, len(words)) + 1):
                if " ".join(words[first:last]) in phrases:
                    reach[bounds[first]] = bounds[last]
        return list(accumulate(reach, max))


def _row_ends(text: str) -> list[int]:
    """For each place where its row of one letter ends."""
    ends = [len(text)] * len(text)
    for place in range(len(text) - 2, -1, -1):
        ends[place] = ends[place + 1] if text[place] == text[place + 1] else place + 1
    return ends


def _kind(letter: str) -> str:
    if letter.isascii():
        return "digit" if letter.isdigit() else "latin"
    if "\u3400" <= letter <= "\u9fff":
        return "han"
    return unicodedata.name(letter, "?").partition(" ")[0]  # HIRAGANA, KATAKANA, HANGUL, CYRILLIC, …
