"""The tables in the docs, made from benchmarks/results/<name>.json.

A page asks for a table with a pair of lines, and what lies between them is written anew:

    <!-- table: gpu -->                             every figure of gpu.json
    <!-- table: gpu | UNet step | VAE decode -->    those whose names begin so
    <!-- columns: fleet | 10 workers | burst -->    a column for all that are called "10 workers: …", one for "burst: …"
    <!-- end -->

    python -m benchmarks.report [--check]    # --check writes nothing, names the pages that are stale, and exits with 1
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = re.compile(r"<!--\s*(table|columns):(.*)-->"), "<!-- end -->"
WHOLE = 100  # from here on, digits behind the point say nothing


class ReportError(Exception):
    """A page asks for what there is not, or a results file is not of the form that `results_file` gives; says which."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str | None
    bar: float | None
    better: str

    @property
    def met(self) -> bool | None:
        """Whether the bar was; None where there is none."""
        if self.bar is None:
            return None
        return self.ours <= self.bar if self.better == "lower" else self.ours >= self.bar


@dataclass(frozen=True, kw_only=True)
class Results:
    path: Path
    machine: str
    versions: Mapping[str, str]
    date: str
    commit: str | None
    figures: Sequence[Figure]

    def beginning_with(self, begin: str) -> list[Figure]:
        """Raises ReportError if no figure does."""
        if not (found := [figure for figure in self.figures if figure.name.startswith(begin)]):
            names = "; ".join(figure.name for figure in self.figures)
            raise ReportError(f"{self.path.name} has no figure {begin!r}; it has: {names}")
        return found


def read(name: str, root: Path = ROOT) -> Results:
    """Raises ReportError."""
    folder = root / "benchmarks" / "results"
    path = folder / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(one.stem for one in folder.glob("*.json"))) or "none"
        raise ReportError(f"there is no benchmarks/results/{name}.json; there are: {there}")
    try:
        content = json.loads(path.read_text())
        figures = [Figure(**{field.name: one[field.name] for field in fields(Figure)}) for one in content["figures"]]
        about = {key: content[key] for key in ("machine", "versions", "date", "commit")}
    except KeyError as error:
        raise ReportError(f"benchmarks/results/{path.name} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ReportError(f"benchmarks/results/{path.name} cannot be read: {error}") from None
    return Results(path=path, figures=figures, **about)


# ---- words


def number(value: float) -> str:
    """Three digits that mean something, or all that stand before the point."""
    if abs(value) >= WHOLE or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}" if float(f"{value:.3g}") == value else f"{value:#.3g}"  # 21.034 is 21.0, and 8.5 is 8.5


def quantity(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def peer_cell(figure: Figure) -> str:
    return "" if figure.peer is None else f"{quantity(figure.peer, figure.unit)} ({figure.peer_name})"


def times_as_good(figure: Figure) -> str:
    """As the peer: above 1, ours is better. Decibels are logarithms already, and are subtracted."""
    if figure.peer is None:
        return ""
    if figure.unit == "dB":
        return f"{figure.ours - figure.peer:+.1f} dB"
    more, less = (figure.peer, figure.ours) if figure.better == "lower" else (figure.ours, figure.peer)
    if not less:
        return ""
    return f"{more / less:,.0f}" if more / less >= WHOLE else f"{more / less:#.2g}".rstrip(".")


def bar_cell(figure: Figure) -> str:
    if figure.bar is None:
        return ""
    return f"{quantity(figure.bar, figure.unit)}, {'met' if figure.met else 'missed'}"


def table(results: Results, figures: Sequence[Figure], page: Path) -> list[str]:
    """Lines of Markdown; a column that would be empty is left out."""
    columns = {
        "figure": [figure.name for figure in figures],
        "ours": [quantity(figure.ours, figure.unit) for figure in figures],
        "peer": [peer_cell(figure) for figure in figures],
        "times as good": [times_as_good(figure) for figure in figures],
        "bar": [bar_cell(figure) for figure in figures],
    }
    filled = {title: [cell.replace("|", r"\|") for cell in cells] for title, cells in columns.items() if any(cells)}
    rows = [list(filled), ["---"] * len(filled), *zip(*filled.values(), strict=True)]
    return ["| " + " | ".join(row) + " |" for row in rows] + ["", source(results, page)]


def side_by_side(results: Results, titles: Sequence[str], page: Path) -> list[str]:
    """Lines of Markdown: a column for each title, a row for each figure that one of them has, with its bar."""
    columns = {
        title: {one.name.removeprefix(f"{title}: "): one for one in results.beginning_with(f"{title}: ")} for title in titles
    }
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [["", *titles], ["---"] * (1 + len(titles))]
    for name in names:
        ones = [column.get(name) for column in columns.values()]
        bar = next((f" (bar: {quantity(one.bar, one.unit)})" for one in ones if one and one.bar is not None), "")
        rows.append([name + bar, *(quantity(one.ours, one.unit) if one else "" for one in ones)])
    return ["| " + " | ".join(row) + " |" for row in rows] + ["", source(results, page)]


def source(results: Results, page: Path) -> str:
    """On what, with what and when it was measured."""
    link = os.path.relpath(results.path, page.parent)
    versions = ", ".join(f"{package} {version}" for package, version in results.versions.items())
    commit = f"commit {results.commit}" if results.commit else "commit not recorded"
    return f"{results.machine}; {versions}; {results.date}, {commit}: [{results.path.name}]({link})."


# ---- pages


def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def with_tables(page: Path, root: Path = ROOT) -> str:
    """The page's text with its tables as the results have them now. Raises ReportError, with the page and the line."""
    lines: list[str] = []
    begun: int | None = None
    for at, line in enumerate(page.read_text().split("\n"), start=1):
        where = f"{page.relative_to(root)}:{at}"
        if marker := BEGIN.fullmatch(line.strip()):
            if begun is not None:
                raise ReportError(f"{where}: the table of line {begun} has no {END}")
            begun = at
            name, *begins = (part.strip() for part in marker[2].split("|"))
            try:
                results = read(name, root)
                if marker[1] == "columns":
                    made = side_by_side(results, begins, page)
                else:
                    wanted = {figure.name for begin in begins or [""] for figure in results.beginning_with(begin)}
                    made = table(results, [figure for figure in results.figures if figure.name in wanted], page)
            except ReportError as error:
                raise ReportError(f"{where}: {error}") from None
            lines += [line, *made]
        elif line.strip() == END:
            if begun is None:
                raise ReportError(f"{where}: {END} without a table")
            begun = None
        if begun is None:
            lines.append(line)
    if begun is not None:
        raise ReportError(f"{page.relative_to(root)}:{begun}: this table has no {END}")
    return "\n".join(lines)


def stale_pages(root: Path = ROOT) -> dict[Path, str]:
    """Each page whose tables are not those of the results, with the text that it should have."""
    wanted = {page: with_tables(page, root) for page in pages(root)}
    return {page: text for page, text in wanted.items() if text != page.read_text()}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    try:
        stale = stale_pages(root)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    for page, text in stale.items():
        if check:
            print(f"{page.relative_to(root)} is stale: make report", file=sys.stderr)
        else:
            page.write_text(text)
            print(f"{page.relative_to(root)} written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
