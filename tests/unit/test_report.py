"""The tables in the docs are those of benchmarks/results, and whatever else they would be is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plot import PLOT, is_current
from benchmarks.report import (
    ROOT,
    Figure,
    ReportError,
    bar_cell,
    main,
    number,
    quantity,
    read,
    stale_pages,
    times_as_good,
    with_tables,
)

STEP: dict[str, Any] = {
    "name": "step, 2 rows",
    "unit": "ms",
    "ours": 27.833,
    "peer": 43.5,
    "peer_name": "a|b",
    "bar": 27,
    "better": "lower",
}
RATE: dict[str, Any] = {
    "name": "rate",
    "unit": "jobs/s",
    "ours": 344,
    "peer": None,
    "peer_name": None,
    "bar": None,
    "better": "higher",
}


def figure(**changes: Any) -> Figure:
    return Figure(**(STEP | changes))


class Project:
    """A repository of one page and one results file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.page = root / "docs" / "deep" / "page.md"
        self.page.parent.mkdir(parents=True)
        (root / "benchmarks" / "results").mkdir(parents=True)
        (root / "README.md").write_text("# No table\n")
        self.measured(STEP, RATE)

    def measured(self, *figures: dict[str, Any]) -> None:
        about = {"machine": "2 cores", "versions": {"python": "3.11", "x": "1"}, "date": "2026-11-23", "commit": None}
        (self.root / "benchmarks" / "results" / "gpu.json").write_text(json.dumps(about | {"figures": figures}))

    def asks(self, *lines: str) -> str:
        self.page.write_text("\n".join(lines) + "\n")
        return with_tables(self.page, self.root)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_pages_are_current() -> None:
    assert [str(page.relative_to(ROOT)) for page in stale_pages()] == [], "make report"


def test_the_plot_is_current_and_light() -> None:
    assert is_current(), f"{PLOT} is stale: make plot"
    assert (ROOT / PLOT).stat().st_size < 60_000


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_results_file_is_of_the_form(path: Path) -> None:
    assert read(path.stem).figures


def test_a_table(project: Project) -> None:
    assert project.asks("before", "<!-- table: gpu -->", "what was", "<!-- end -->", "after").split("\n") == [
        "before",
        "<!-- table: gpu -->",
        "| figure | ours | peer | times as good | bar |",
        "| --- | --- | --- | --- | --- |",
        r"| step, 2 rows | 27.8 ms | 43.5 ms (a\|b) | 1.6 | 27 ms, missed |",
        "| rate | 344 jobs/s |  |  |  |",
        "",
        "2 cores; python 3.11, x 1; 2026-11-23, commit not recorded: [gpu.json](../../benchmarks/results/gpu.json).",
        "<!-- end -->",
        "after",
        "",
    ]


def test_some_figures_of_it_without_the_columns_they_leave_empty(project: Project) -> None:
    lines = project.asks("<!-- table: gpu | ra -->", "<!-- end -->").split("\n")
    assert lines[1:4] == ["| figure | ours |", "| --- | --- |", "| rate | 344 jobs/s |"]


def test_figures_stand_in_the_order_of_the_file_and_once(project: Project) -> None:
    text = project.asks("<!-- table: gpu | rate | step | step, 2 -->", "<!-- end -->")
    assert [line.split(" | ")[0] for line in text.split("\n")[3:5]] == ["| step, 2 rows", "| rate"]


def test_a_changed_figure_is_noticed_and_written(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.asks("<!-- table: gpu -->", "<!-- end -->")
    assert main([], project.root) == 0
    assert main(["--check"], project.root) == 0
    project.measured(STEP | {"ours": 26.9}, RATE)
    capsys.readouterr()
    assert main(["--check"], project.root) == 1
    assert capsys.readouterr().err == "docs/deep/page.md is stale: make report\n"
    assert "27.8 ms" in project.page.read_text(), "--check writes nothing"
    assert main([], project.root) == 0
    assert "| 26.9 ms | 43.5 ms (a\\|b) | 1.6 | 27 ms, met |" in project.page.read_text()
    assert main(["--check"], project.root) == 0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["", "<!-- table: overlap -->", "<!-- end -->"],
            r"page\.md:2: there is no benchmarks/results/overlap\.json; there are: gpu",
        ),
        (["<!-- table: gpu | leap -->", "<!-- end -->"], r"page\.md:1: gpu\.json has no figure 'leap'; it has: step, 2 rows; rate"),
        (["<!-- table: gpu -->", "text"], r"page\.md:1: this table has no <!-- end -->"),
        (["<!-- table: gpu -->", "<!-- table: gpu -->", "<!-- end -->"], r"page\.md:2: the table of line 1 has no <!-- end -->"),
        (["<!-- end -->"], r"page\.md:1: <!-- end --> without a table"),
    ],
)
def test_what_a_page_cannot_ask(project: Project, lines: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ReportError, match=said):
        project.asks(*lines)
    assert main(["--check"], project.root) == 1
    assert "docs/deep/page.md:" in capsys.readouterr().err


def test_a_results_file_of_another_form(project: Project) -> None:
    project.measured({name: value for name, value in STEP.items() if name != "bar"})
    with pytest.raises(ReportError, match=r"gpu\.json lacks 'bar'"):
        read("gpu", project.root)
    (project.root / "benchmarks" / "results" / "gpu.json").write_text("{")
    with pytest.raises(ReportError, match=r"gpu\.json cannot be read"):
        read("gpu", project.root)


@pytest.mark.parametrize(
    ("value", "written"),
    [(27.833, "27.8"), (21.034, "21.0"), (8.5, "8.5"), (0.715, "0.715"), (155.8, "156"), (25886, "25,886"), (3.0, "3"), (0, "0")],
)
def test_digits(value: float, written: str) -> None:
    assert number(value) == written


def test_a_figure_without_a_unit() -> None:
    assert quantity(98, "") == "98"


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({}, "1.6"),
        ({"better": "higher"}, "0.64"),
        ({"ours": 8.5, "peer": 1050.2}, "124"),
        ({"ours": 10.1, "peer": 290}, "29"),
        ({"ours": 57.5, "peer": 48.8, "unit": "dB"}, "+8.7 dB"),
        ({"ours": 0}, ""),
        ({"peer": None}, ""),
    ],
)
def test_times_as_good_as_the_peer(changes: dict[str, Any], written: str) -> None:
    assert times_as_good(figure(**changes)) == written


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({"ours": 27}, "27 ms, met"),
        ({"ours": 27.01}, "27 ms, missed"),
        ({"ours": 27.01, "better": "higher"}, "27 ms, met"),
        ({"ours": 26.9, "better": "higher"}, "27 ms, missed"),
        ({"bar": None}, ""),
        ({"ours": 0, "bar": 0}, "0 ms, met"),
    ],
)
def test_bars(changes: dict[str, Any], written: str) -> None:
    assert bar_cell(figure(**changes)) == written
