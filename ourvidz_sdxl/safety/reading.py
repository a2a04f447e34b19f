"""How a text can be read: look-alike letters become Latin ones, what is invisible goes, signs stand for letters or for nothing.

Pure, and linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# The confusables of Unicode Technical Standard 39 (confusables.txt) as a dictionary: character -> its look-alikes.
from confusable_homoglyphs.confusables import confusables_data  # type: ignore[import-untyped]

from ourvidz_sdxl.prompts import plain

# Letters to which that list gives another partner or none; and pictures, which say a word of their own.
BY_HAND = dict(zip("βεηκμχωимпшьəĸʍ", "benkuxwumnwbekm", strict=True))
PICTURES = {"👶": " baby ", "🧒": " child ", "👧": " little girl ", "👦": " little boy "}
# A character's name may say its letter too: LATIN LETTER SMALL CAPITAL N, NEGATIVE SQUARED LATIN CAPITAL LETTER A.
NAME = re.compile(r"(?:LATIN(?: SMALL| CAPITAL)?|REGIONAL INDICATOR SYMBOL) LETTER (?:[A-Z]+ )*([A-Z])(?: WITH .*)?$")
NAMED_BLOCKS = ((0xC0, 0x2B0), (0x1D00, 0x1F00), (0x2C60, 0x2C80), (0xA720, 0xA800), (0xAB30, 0xAB70), (0x1F110, 0x1F200))
UNSEEN = {"Mn", "Mc", "Me", "Cf"}  # marks upon letters, and characters that only steer the others
BLANKS = set("\u115f\u1160\u3164\uffa0")  # letters by their category, and yet nothing is drawn

SIGNS = dict(zip("@$€¢£|¡!+", "asecliiit", strict=True))  # each may be a letter or stand between words
APOSTROPHES = re.compile(r"(?<=\w)['’‘´`]+(?=\w)")  # "isn't" is one word, not "isn" and "t"
NOT_LATIN = re.compile(r"[^a-z0-9]+")
NOT_WORDS = re.compile(r"[\W_]+")

# What prompts hold beside words: "(word:1.3)", "[a:b:0.5]", BREAK and AND. A range of ages counts as its lower end.
SYNTAX = re.compile(r":\s?-?[\d.]+\s?(?=[)\]>}])|\b(?:BREAK|AND)\b")
AGE_RANGE = re.compile(r"(?<!\d)(\d{1,2})\s{0,2}(?:-|–|to|or)\s{0,2}\d{1,2}(?=[\s-]{0,2}y)", re.IGNORECASE)


def normalise(text: str) -> str:
    """The words of the text in plain lower-case Latin letters and digits, one space between two."""
    return _words(_latin(text))


def readings(text: str) -> Iterator[str]:
    """The ways to read a text, each as words with a space between two. What any of them says, the text says.

    As written, as the text encoders get it (without weights), and without any syntax of prompts; with signs between words and
    as letters; and in its own script.
    """
    versions = (text, *(SYNTAX.sub(" ", AGE_RANGE.sub(r"\1 ", version)) for version in (text, plain(text))))
    for version in dict.fromkeys(versions):
        latin = _latin(version)
        yield _words(latin)
        spelt = latin.translate(SIGN_LETTERS)
        if spelt != latin:
            yield _words(spelt)
        if not version.isascii():
            yield NOT_WORDS.sub(" ", own_script(version)).strip()


def own_script(text: str) -> str:
    """Lower-case, without marks and invisible characters, compatibility forms resolved (NFKC)."""
    return _seen(text).casefold()


def _latin(text: str) -> str:
    # Before each step and at the end, since a letter may change its looks: lower-case Η (eta) is η, and ϲ becomes ς under NFKC.
    return _seen(text.translate(LATIN)).translate(LATIN).casefold().translate(LATIN)


def _words(latin: str) -> str:
    return NOT_LATIN.sub(" ", APOSTROPHES.sub("", latin)).strip()


def _seen(text: str) -> str:
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    seen = (c for c in apart if unicodedata.category(c) not in UNSEEN and c not in BLANKS)
    return unicodedata.normalize("NFC", "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in seen))


def _named(letter: str) -> str | None:
    name = NAME.search(unicodedata.name(letter, ""))
    return name[1].lower() if name else BY_HAND.get(letter)


def _look_alike(letter: str) -> str | None:
    """The ASCII letters or the digit for which `letter` can be taken."""
    if letter in BY_HAND:
        return BY_HAND[letter]
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    partners = [partner["c"] for partner in confusables_data.get(letter, ())]
    plain = (_seen(each).casefold() for each in (letter, *partners))
    if latin := next((p for p in plain if p.isascii() and p.isalnum()), None):
        return latin.replace("rn", "m")  # what looks like an m is listed as looking like "rn"
    return _named(letter) or next((named for p in partners if len(p) == 1 and (named := _named(p))), None)


def _look_alikes() -> dict[int, str]:
    listed = {letter for letter in confusables_data if len(letter) == 1 and not letter.isascii()}
    named = {chr(code) for first, end in NAMED_BLOCKS for code in range(first, end)}
    return str.maketrans({x: latin for x in {*listed, *named, *BY_HAND} - SIGNS.keys() if (latin := _look_alike(x))} | PICTURES)


LATIN = _look_alikes()
SIGN_LETTERS = str.maketrans(SIGNS)
