"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    NOTE = "note"  # nothing is wrong, but the operator may not know it
    FAIL = "fail"
    SKIP = "skip"  # could not be looked at


@dataclass(frozen=True, kw_only=True)
class Finding:
    state: State
    words: str
    mend: str = ""
    passing: bool = False  # it may be over by itself a moment later

    def line(self, name: str) -> str:
        mark = "FAIL" if self.state is State.FAIL else f"{self.state:4}"
        return f"{mark} {name}{': ' if self.words else ''}{self.words}{' ' if self.mend else ''}{self.mend}"

    def facts(self) -> dict[str, str]:
        return {"state": self.state, "words": self.words, "mend": self.mend}


def ok(words: str = "") -> Finding:
    return Finding(state=State.OK, words=words)


def note(words: str) -> Finding:
    return Finding(state=State.NOTE, words=words)


def skip(words: str) -> Finding:
    return Finding(state=State.SKIP, words=words)


def fail(words: str, mend: str, *, passing: bool = False) -> Finding:
    return Finding(state=State.FAIL, words=words, mend=mend, passing=passing)
