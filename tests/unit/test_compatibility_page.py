"""docs/compatibility.md: each of its rows names tests that exist."""

import re
from collections.abc import Iterator

import pytest

from ourvidz_sdxl.local import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
# `path`, `path::name`, `::name` in the file named last, or "name" as node's tests have it; … stands for the rest of a name
REFERENCE = re.compile(r"`((?:tests|studio|supabase)/[^`:]+)?(?:::([^`]+))?`|\"([^\"]+)\"")


def rows() -> Iterator[list[str]]:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.endswith("| test |"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def references(cell: str) -> list[tuple[str, str]]:
    """(file, a piece of the test's name or the empty text) for each test that a cell names."""
    found, file = [], ""
    for path, name, quoted in REFERENCE.findall(cell):
        file = path or file
        pieces = re.split(r"…|::", name or quoted)
        found += [(file, re.sub(r"\[.*\]$", "", piece).strip(" ,")) for piece in pieces]
    return found


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row[0][:60])
def test_a_row_names_tests_that_exist(row: list[str]) -> None:
    what, verdict, tests = row
    assert what
    assert verdict
    named = references(tests)
    assert named, tests
    for file, piece in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert piece in source.replace('\\"', '"').replace("\\'", "'"), f"{file} has no {piece!r}"


def test_rows_of_every_verdict_are_read() -> None:
    verdicts = " ".join(verdict for _, verdict, _ in rows())
    assert all(word in verdicts for word in ("supported", "refused", "different"))
