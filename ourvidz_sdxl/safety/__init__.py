"""What must not be painted: a check of the texts before the GPU, and of the images before they are stored.

The rules, in the order of `broken_rule`. A text counts as positive unless it is the negative prompt.

1. Sexual content with minors, under every policy:
   - a word that names such abuse, in any text, and a word that sexualises minors by itself, in a positive text;
   - a minor anywhere in the positive texts and sexual or suggestive content anywhere in them. What was asked for and what the
     enhancer made of it count together. Denials do not help ("not a child"): SDXL's text encoders hardly know negation;
   - a minor in the positive texts and clothes in the negative prompt, which undresses;
   - sexual or suggestive content in the positive texts and adults in the negative prompt, which makes people younger.
2. Under ContentPolicy.GENERAL also sexual content or nudity in the positive texts, or clothes in the negative prompt.

A minor in the negative prompt is a safeguard and welcome, and so is sexual content there. A text with a weight below zero pulls
both ways and counts as positive and negative.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final

from ourvidz_sdxl.errors import ContentRefused
from ourvidz_sdxl.safety.finding import Finder, Match
from ourvidz_sdxl.safety.images import ImageCheck, check_images, load_image_check
from ourvidz_sdxl.safety.reading import normalise, readings
from ourvidz_sdxl.safety.terms import HARMLESS, ORDINARY, TERMS, Group

__all__ = [
    "NEGATIVE",
    "ContentPolicy",
    "ImageCheck",
    "Rule",
    "broken_rule",
    "check_images",
    "check_text",
    "load_image_check",
    "normalise",
]

NEGATIVE: Final = "negative_prompt"
"""The name of the one text that says what not to paint."""

BELOW_ZERO: Final = re.compile(r":\s{0,3}-\s{0,3}[\d.]")  # "(word:-1.2)"

# How many letters may stand between a GIRL and what makes her a minor: "young beautiful blonde girl", "girl, pretty and young",
# "little blonde girl".
YOUNG_BEFORE: Final = 24
YOUNG_AFTER: Final = 12
SMALL_BEFORE: Final = 10

_finder = Finder(TERMS.items(), ordinary=ORDINARY, harmless=HARMLESS)


class ContentPolicy(StrEnum):
    """The operator's choice for everything but minors."""

    ADULT = "adult"
    GENERAL = "general"


class Rule(StrEnum):
    """The reason of a refusal, for the operator."""

    MINORS = "minors"
    GENERAL = "general"


def check_text(texts: Mapping[str, str], policy: ContentPolicy) -> None:
    """`texts` by the name of their column: what the user wrote and what the enhancer made of it, before presets are added.

    Raises ContentRefused, which names the rule and nothing of the texts.
    """
    if rule := broken_rule(texts, policy):
        raise ContentRefused(f"text refused by rule {rule}")


def broken_rule(texts: Mapping[str, str], policy: ContentPolicy) -> Rule | None:
    positive, negative = _Said(), _Said()
    for name, text in texts.items():
        both = BELOW_ZERO.search(text) is not None
        for side in (positive,) * (both or name != NEGATIVE) + (negative,) * (both or name == NEGATIVE):
            side.hear(text)
    if _minors(positive.groups, negative.groups):
        return Rule.MINORS
    if policy is not ContentPolicy.ADULT and (positive.sexual or Group.CLOTHES in negative.groups):
        return Rule.GENERAL
    return None


def _minors(positive: set[str], negative: set[str]) -> bool:
    sexual = bool(positive & {Group.SEXUAL, Group.SUGGESTIVE})
    return (
        Group.ABUSE in positive | negative
        or Group.SEXUALISED_MINOR in positive
        or (Group.MINOR in positive and (sexual or Group.CLOTHES in negative))
        or (Group.ADULT in negative and sexual)
    )


class _Said:
    """What the texts of one side hold, taken together."""

    def __init__(self) -> None:
        self.groups: set[str] = set()
        self.sexual = False  # in a sense that is not harmless

    def hear(self, text: str) -> None:
        for reading in readings(text):
            matches = _finder.find(reading)
            self.groups.update(_groups(matches))
            self.sexual |= any(match.group == Group.SEXUAL and not match.harmless for match in matches)
            if _a_young_girl(matches):
                self.groups.add(Group.MINOR)


def _groups(matches: Iterable[Match]) -> Iterator[str]:
    """The "old" of "12 years old" is no adult: what lies within a minor's term does not count."""
    minor_until = 0
    for match in matches:  # in the order of their beginnings, and of their ends where those are the same
        if match.group == Group.MINOR:
            minor_until = max(minor_until, match.end)
        if match.group != Group.ADULT or match.end > minor_until:
            yield match.group


def _a_young_girl(matches: Iterable[Match]) -> bool:
    """Whether a GIRL has a YOUNG or SMALL beside her. One pass: of each, only the nearest one before matters."""
    last = dict.fromkeys((Group.GIRL, Group.YOUNG, Group.SMALL), -1000)
    for match in matches:  # in the order of their beginnings
        if match.group == Group.GIRL and (
            match.start - last[Group.YOUNG] <= YOUNG_BEFORE or match.start - last[Group.SMALL] <= SMALL_BEFORE
        ):
            return True
        if match.group == Group.YOUNG and match.start - last[Group.GIRL] <= YOUNG_AFTER:
            return True
        if match.group in last:
            last[Group(match.group)] = match.end
    return False
