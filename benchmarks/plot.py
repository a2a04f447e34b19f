"""docs/performance/time-against-floor.svg: how many times its floor a step, a decode and a whole image take, ours and diffusers'.

Needs matplotlib, of requirements-bench.txt: `make plot`. The same figures give the same file, byte for byte.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import ROOT, Results, number, read

PLOT = Path("docs") / "performance" / "time-against-floor.svg"

# What an 8192 x 8192 x 8192 matmul in fp16 reached on that H100 is taken for what can be reached: 726 TFLOP/s. The operations are
# those of diffusers' models, counted by torch's FlopCounterMode, attention included.
CEILING_TFLOP_PER_MS = 0.726
STEP_FLOOR_MS = 13.5 / CEILING_TFLOP_PER_MS  # 13.5 TFLOP a step of 2 rows: 18.6 ms
DECODE_FLOOR_MS = 14.4  # in the same way
IMAGE_FLOOR_S = (25 * STEP_FLOOR_MS + DECODE_FLOOR_MS) / 1000  # 0.48 s; that of the text encoders is left out

# Of diffusers, measured once and not again by benchmarks/gpu.py: an H100, torch 2.11.0, diffusers 0.42.1. Compiled is
# torch.compile(mode="reduce-overhead"), which takes 160 s. Decoding, eager, is in fp32, as diffusers does by itself.
EAGER_STEP_MS, EAGER_DECODE_MS, EAGER_BATCH_6_S = 96.6, 125, 1.170
COMPILED_STEP_MS, COMPILED_DECODE_MS, COMPILED_IMAGE_S = 38.0, 38.7, 0.935

EAGER, GRAPH, COMPILED, OURS = "diffusers, eager", "diffusers, as one graph", "diffusers, compiled", "this worker"
COLOURS = {EAGER: "#9aa5b1", GRAPH: "#7b8794", COMPILED: "#52606d", OURS: "#0072b2"}  # greys, and the blue of Okabe and Ito
FLOOR = "#b34700"
# Text stays text, in whatever sans-serif the reader has: DejaVu, by which places are reckoned, is among the widest.
SVG = {"svg.hashsalt": "ourvidz-sdxl", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Arial"], "font.size": 10}


@dataclass(frozen=True, kw_only=True)
class Group:
    """One thing that is timed; `bars` in its unit, from the slowest way to ours."""

    name: str
    unit: str
    floor: float
    bars: dict[str, float]


def groups(gpu: Results) -> list[Group]:
    """Raises ReportError if the results lack one of the figures."""
    names = ("UNet step, 2 rows", "VAE decode", "batch 1, an image", "batch 6, an image")
    step, decode, one, six = (gpu.beginning_with(name)[0] for name in names)
    found: list[tuple[str, str, float, dict[str, float | None]]] = [
        (
            "UNet step, 2 rows",
            "ms",
            STEP_FLOOR_MS,
            {EAGER: EAGER_STEP_MS, GRAPH: step.peer, COMPILED: COMPILED_STEP_MS, OURS: step.ours},
        ),
        (
            "VAE decode",
            "ms",
            DECODE_FLOOR_MS,
            {EAGER: EAGER_DECODE_MS, GRAPH: decode.peer, COMPILED: COMPILED_DECODE_MS, OURS: decode.ours},
        ),
        ("Image, batch 1", "s", IMAGE_FLOOR_S, {EAGER: one.peer, COMPILED: COMPILED_IMAGE_S, OURS: one.ours}),
        ("Image in a batch of 6", "s", IMAGE_FLOOR_S, {EAGER: EAGER_BATCH_6_S, OURS: six.ours}),
    ]
    return [
        Group(name=name, unit=unit, floor=floor, bars={way: value for way, value in bars.items() if value is not None})
        for name, unit, floor, bars in found
    ]


def in_words(shown: list[Group]) -> str:
    """What the plot shows. It stands in the file, too, which tells whether the file is current without drawing it again."""
    return " ".join(
        f"{group.name} (floor {number(group.floor)} {group.unit}): "
        + "; ".join(f"{way}: {number(value)} {group.unit}" for way, value in group.bars.items())
        + "."
        for group in shown
    )


def is_current(root: Path = ROOT) -> bool:
    return html.escape(in_words(groups(read("gpu", root))), quote=False) in (root / PLOT).read_text()


def draw(shown: list[Group], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SVG):
        figure = Figure(figsize=(8.6, 5.6), facecolor="white", layout="constrained")  # white: the same on a dark page
        axes = figure.add_subplot()
        lines: dict[float, str] = {}
        at = 0.0
        for group in shown:
            lines[at] = group.name
            for colour, width in (("white", 4.0), (FLOOR, 1.8)):  # the white keeps the line visible in front of a bar
                axes.vlines(1, at - 0.3, at + len(group.bars) + 0.5, color=colour, linewidth=width, zorder=3)
            axes.text(1.06, at, f"floor {number(group.floor)} {group.unit}", color=FLOOR, va="center")
            for way, value in group.bars.items():
                at += 1
                lines[at] = way
                axes.barh(at, value / group.floor, height=0.78, color=COLOURS[way])
                weight = "bold" if way == OURS else "normal"
                axes.text(value / group.floor + 0.08, at, f"{number(value)} {group.unit}", va="center", weight=weight)
            at += 1.6
        axes.set_yticks(list(lines), list(lines.values()))
        for label in axes.get_yticklabels():
            label.set_weight("normal" if label.get_text() in COLOURS else "bold")
            label.set_color(COLOURS[OURS] if label.get_text() == OURS else "black")
        axes.set_ylim(at - 0.9, -0.6)
        axes.set_xlim(0, max(value / group.floor for group in shown for value in group.bars.values()) * 1.1)
        axes.set_xlabel("time, as a multiple of the floor: shorter is better")
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"Title": "Time against the floor, one H100", "Description": in_words(shown), "Date": None, "Creator": None}
        figure.savefig(path, metadata=about)


if __name__ == "__main__":
    draw(groups(read("gpu")), ROOT / PLOT)
    print(f"{PLOT} written")
