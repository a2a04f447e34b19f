"""docs/scale/*.svg: claims by the size of the fleet, what Realtime would have to deliver, and waits beside the fair share.

Needs matplotlib, of requirements-bench.txt: `make plot`. The same figures give the same files, byte for byte.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plot import SVG
from benchmarks.report import ROOT, Results, number, read

FOLDER = Path("docs") / "scale"
STEADY = re.compile(r"([\d,]+) workers: (.*)")
PLANS = {"Pro": 500, "Team": 2500}  # messages a second that Supabase delivers: https://supabase.com/docs/guides/realtime/limits
BLUE, ORANGE, GREEN, PINK, GREY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#7b8794", "#b34700"  # most of Okabe and Ito
COLOURS = BLUE, ORANGE, GREEN, PINK, "#56b4e9", GREY, "#000000"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points of one figure, by the number of workers."""

    name: str
    figure: str
    colour: str
    style: str = "-"


CLAIMS = (
    Line(name="p99 with connection and commit", figure="claim with connection and commit, p99", colour=ORANGE),
    Line(name="p99 in Postgres", figure="claim in Postgres, p99", colour=BLUE),
    Line(name="p95 in Postgres", figure="claim in Postgres, p95", colour=BLUE, style="--"),
    Line(name="median in Postgres", figure="claim in Postgres, median", colour=BLUE, style=":"),
)
MESSAGES = (
    Line(name="wakes to workers", figure="Realtime, to workers", colour=ORANGE),
    Line(name="progress, at most", figure="Realtime, progress at most", colour=GREEN),
    Line(name="changes of jobs to users", figure="Realtime, to users", colour=BLUE),
)


def by_size(results: Results, figure: str) -> dict[int, float]:
    """The figure at each number of workers."""
    found = ((STEADY.fullmatch(one.name), one.ours) for one in results.figures)
    return dict(sorted((int(match[1].replace(",", "")), ours) for match, ours in found if match and match[2] == figure))


def fair(root: Path = ROOT) -> dict[str, list[float]]:
    """Percentiles, 0 to 100, of what users waited beside their fair share."""
    content: dict[str, Any] = json.loads((root / "benchmarks" / "results" / "fleet.json").read_text())
    return dict(content["series"]["fair"])


def in_words(results: Results, lines: Sequence[Line], unit: str) -> str:
    """What a plot shows. It stands in the file, too, which tells whether the file is current without drawing it again."""
    return " ".join(
        f"{line.name}: "
        + "; ".join(f"{size:,} workers {number(value)} {unit}" for size, value in by_size(results, line.figure).items())
        + "."
        for line in lines
    )


def fair_in_words(shares: Mapping[str, Sequence[float]]) -> str:
    return " ".join(f"{name}: median {number(values[50])}, longest {number(values[100])} times." for name, values in shares.items())


def descriptions(root: Path = ROOT) -> dict[str, str]:
    """Of each file, what it shows."""
    results = read("fleet", root)
    return {
        "claims.svg": in_words(results, CLAIMS, "ms"),
        "realtime.svg": in_words(results, MESSAGES, "messages/s"),
        "fairness.svg": fair_in_words(fair(root)),
    }


def stale(root: Path = ROOT) -> list[str]:
    """The files that do not show the figures as they are now."""
    return [
        name
        for name, words in descriptions(root).items()
        if html.escape(words, quote=False) not in (root / FOLDER / name).read_text()
    ]


# ---- drawing


def draw_lines(axes: Any, results: Results, lines: Sequence[Line], label: str) -> None:
    for line in lines:
        points = by_size(results, line.figure)
        axes.plot(list(points), list(points.values()), line.style, marker="o", markersize=4, color=line.colour, label=line.name)
    sizes = list(by_size(results, lines[0].figure))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.set_xlabel("workers")
    axes.set_ylabel(label)


def level(axes: Any, value: float, text: str) -> None:
    axes.axhline(value, color=RED, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(text, (0.005, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", color=RED)


def draw_claims(axes: Any, results: Results) -> None:
    draw_lines(axes, results, CLAIMS, "ms a claim")
    level(axes, 50, "bar: 50 ms")


def draw_messages(axes: Any, results: Results) -> None:
    draw_lines(axes, results, MESSAGES, "messages delivered a second")
    for plan, limit in PLANS.items():
        level(axes, limit, f"{plan}: {limit:,}")


def draw_fairness(axes: Any, _results: Results) -> None:
    for colour, (name, values) in zip(COLOURS, fair().items(), strict=False):
        axes.plot(values, range(101), color=colour, label=name)
    axes.axvline(2, color=RED, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate("bar: twice", (2, 3), xytext=(4, 0), textcoords="offset points", color=RED)
    axes.set_xlim(left=0)
    axes.set_xlabel("a user's waiting, as a multiple of the fair share")
    axes.set_ylabel("percent of users")


def save(name: str, title: str, words: str, fill: Callable[[Any, Results], None]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SVG):
        figure = Figure(figsize=(8.6, 4.6), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        fill(axes, read("fleet"))
        axes.grid(visible=True, color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
        about = {"Title": title, "Description": words, "Date": None, "Creator": None}
        figure.savefig(ROOT / FOLDER / name, metadata=about)
    print(f"{FOLDER / name} written")


def main() -> None:
    words = descriptions()
    save("claims.svg", "How long a claim takes, by the size of the fleet", words["claims.svg"], draw_claims)
    save("realtime.svg", "What Realtime delivers, by the size of the fleet", words["realtime.svg"], draw_messages)
    save("fairness.svg", "What users wait, beside their fair share", words["fairness.svg"], draw_fairness)


if __name__ == "__main__":
    main()
