"""docs/compatibility.md: each of its rows names a test that exists."""

import re

import pytest

from ourvidz_sdxl.local import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "---" not in line
]
REFERENCE = re.compile(r"`((?:tests|studio|supabase)/[^`]+?)(?:::([^`]+))?`")
VERDICT = re.compile(r"supported|refused \(`[^`]+`\)|different: \S")


def body_rows() -> list[list[str]]:
    return [row for row in ROWS if row[-1] != "test"]


@pytest.mark.parametrize("row", body_rows(), ids=lambda row: row[0])
def test_a_row_has_a_verdict_and_a_test_that_exists(row: list[str]) -> None:
    what, verdict, tests = row
    assert what
    assert VERDICT.match(verdict), verdict
    references = REFERENCE.findall(tests)
    assert references, tests
    for path, name in references:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert name.partition("[")[0].split("::")[-1] in source, f"{path} has no {name}"


def test_the_page_has_rows_of_each_kind() -> None:
    verdicts = [verdict.split(" ", 1)[0].strip(":") for _, verdict, _ in body_rows()]
    assert {"supported", "refused", "different"} <= set(verdicts)
