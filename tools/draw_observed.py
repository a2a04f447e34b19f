"""Draws docs/observability/*.svg from observed.json: each row of the dashboard as Grafana would show it, and the trace of one job.

Needs matplotlib, of requirements-bench.txt: `make dashboard`. The same figures give the same files, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "observability"
DASHBOARD = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboard.json"
# Of Okabe and Ito, who chose them so that everybody can tell them apart; then the same again, dashed.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7b8794", "#f0e442")
UNITS = {"s": "seconds", "bytes": "MiB", "percentunit": "%", "cpm": "a minute", "short": ""}
SCALES = {"bytes": 1 / 2**20, "percentunit": 100.0}
WIDTH, PANEL_HEIGHT, TABLE_HEIGHT = 12.0, 3.0, 1.6  # inches


def rows(dashboard: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each row's title, and its panels."""
    title, panels = "", list[dict[str, Any]]()
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            if panels:
                yield title, panels
            title, panels = panel["title"], []
        else:
            panels.append(panel)
    yield title, panels


def stamp(observed: bytes) -> str:
    """Stands in each file, so that it can be told whether they are of these figures."""
    return f"observed {sha256(observed).hexdigest()[:16]}"


def legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), pattern)


def draw_panel(axes: Any, panel: dict[str, Any], answers: list[dict[str, Any]], seconds: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit, stacked = defaults["unit"], defaults["custom"].get("stacking", {}).get("mode") == "normal"
    lines = sorted(
        (legend(answer["legend"], series["labels"]), {t: v * SCALES.get(unit, 1) for t, v in series["points"] if v == v})
        for answer in answers
        for series in answer["series"]
    )
    lines = [(name, points) for name, points in lines if points]
    if stacked and lines:
        times = sorted({t for _, points in lines for t in points})
        values = [[points.get(t, 0.0) for t in times] for _, points in lines]
        axes.stackplot(times, values, labels=[name for name, _ in lines], colors=COLOURS, alpha=0.75, linewidth=0)
    else:
        for i, (name, points) in enumerate(lines):
            times = sorted(points)
            style = "-" if i < len(COLOURS) else "--"
            axes.plot(times, [points[t] for t in times], style, color=COLOURS[i % len(COLOURS)], linewidth=1.3, label=name)
    if not lines:
        axes.text(seconds / 2, 0.5, "nothing to show", ha="center", color="#7b8794")
    axes.set_title(panel["title"], loc="left", fontsize=9, weight="bold")
    axes.set_xlim(0, seconds)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(UNITS[unit], fontsize=7)
    axes.set_xticks(range(0, int(seconds) + 1, 60), [f"{t // 60} min" for t in range(0, int(seconds) + 1, 60)])
    axes.tick_params(labelsize=7, length=2)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        below = {"loc": "upper left", "bbox_to_anchor": (-0.1, -0.1), "ncols": 2 if panel["gridPos"]["w"] <= 8 else 4}
        axes.legend(fontsize=6, frameon=False, columnspacing=1.2, handlelength=1.2, **below)


def draw_table(axes: Any, panel: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    names = ("instance", "gpu", "worker", "version", "target_worker", "model", "model_hash", "gpu_name")
    seen = {tuple(series["labels"].get(name, "") for name in names) for answer in answers for series in answer["series"]}
    cells = [[*row[:6], f"{row[6][:12]}…", row[7] or "CPU"] for row in sorted(seen)]
    axes.set_title(panel["title"], loc="left", fontsize=9, weight="bold")
    axes.axis("off")
    table = axes.table(cellText=cells, colLabels=names, loc="upper left", cellLoc="left", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(7)


def draw_row(panels: list[dict[str, Any]], observed: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    tops = sorted({panel["gridPos"]["y"] for panel in panels})
    tables = {panel["gridPos"]["y"] for panel in panels if panel["type"] == "table"}
    heights = [TABLE_HEIGHT if top in tables else PANEL_HEIGHT for top in tops]
    whole = sum(heights)
    figure = Figure(figsize=(WIDTH, whole), facecolor="white")
    for panel in panels:
        at, line = panel["gridPos"], tops.index(panel["gridPos"]["y"])
        left, width = WIDTH * at["x"] / 24, WIDTH * at["w"] / 24
        bottom, height = whole - sum(heights[: line + 1]), heights[line]
        # room for what stands around it
        x, y, w, h = left + 0.6, bottom + 0.75, width - 0.75, height - 1.05
        axes = figure.add_axes((x / WIDTH, y / whole, w / WIDTH, h / whole))
        answers = [answer for answer in observed["answers"] if answer["panel"] == panel["title"]]
        if panel["type"] == "table":
            draw_table(axes, panel, answers)
        else:
            draw_panel(axes, panel, answers, observed["seconds"])
    return figure


def draw_trace(spans: list[dict[str, Any]]) -> Any:
    """One line a span, children under their parents, from the insert on."""
    from matplotlib.figure import Figure

    below: dict[str, list[dict[str, Any]]] = {}
    ids = {span["span_id"] for span in spans}
    for span in sorted(spans, key=lambda span: (span["start"], span["end"])):
        below.setdefault(span["parent_id"] if span["parent_id"] in ids else "", []).append(span)

    def in_order(parent: str, depth: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for span in below.get(parent, ()):
            yield depth, span
            yield from in_order(span["span_id"], depth + 1)

    lines = list(in_order("", 0))
    begin = lines[0][1]["start"]
    height = 0.6 + 0.27 * len(lines)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((0.14, 0.5 / height, 0.85, 1 - 0.6 / height))
    for at, (depth, span) in enumerate(lines):
        start, length = (span["start"] - begin) * 1000, (span["end"] - span["start"]) * 1000
        axes.barh(at, length, left=start, height=0.7, color=COLOURS[depth % len(COLOURS)])
        told = f"{length:.0f} ms" if length >= 1 else f"{length:.2f} ms"
        if "steps" in span["attributes"]:
            told += f", {span['attributes']['steps']} steps"
        axes.text(start + length, at, f"  {told}", va="center", fontsize=8)
        name = f"{span['name']}{index_of(span)}"
        axes.text(-0.15 + 0.012 * depth, at, name, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(0, (lines[0][1]["end"] - begin) * 1000 * 1.1)
    axes.set_xlabel("milliseconds since the insert", fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def index_of(span: dict[str, Any]) -> str:
    return f" {span['attributes']['index']}" if "index" in span["attributes"] else ""


def main() -> None:
    import matplotlib as mpl

    raw = (FOLDER / "observed.json").read_bytes()
    observed, dashboard = json.loads(raw), json.loads(DASHBOARD.read_text())
    # text stays text, in whatever sans-serif the reader has
    settings = {"svg.hashsalt": "ourvidz-sdxl", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Arial"]}
    with mpl.rc_context(settings):
        figures = {title.lower(): draw_row(panels, observed) for title, panels in rows(dashboard)}
        figures["trace"] = draw_trace(observed["trace"])
        for name, figure in figures.items():
            about = {"Title": f"SDXL workers: {name}", "Description": stamp(raw), "Date": None, "Creator": None}
            figure.savefig(FOLDER / f"{name}.svg", metadata=about)
            print(f"docs/observability/{name}.svg written")


if __name__ == "__main__":
    main()
