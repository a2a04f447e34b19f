"""The little world that the tiny model paints: one coloured shape on a coloured background.

A `Scene` says everything about a picture; `draw` makes the picture. Nothing here needs torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

PALETTE: Final[dict[str, RGB]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 50),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "cross")
PLACES: Final = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
HELD_OUT_COUNT: Final = 100
_MARGIN: Final = 0.04  # of the shorter side; no shape touches the edge, so the border always shows the background
_SUPERSAMPLING: Final = 8


def _polygon(points: Sequence[tuple[float, float]]) -> npt.NDArray[np.float64]:
    """The points as (n, 2), moved so that the bounding box is centred on the origin."""
    outline = np.array(points, dtype=np.float64)
    middle: npt.NDArray[np.float64] = (outline.min(axis=0) + outline.max(axis=0)) / 2
    return outline - middle


def _star(outer: float, inner: float) -> list[tuple[float, float]]:
    """Ten corners of a five-pointed star that stands on two of its points."""
    angles = [np.pi * (k / 5 - 0.5) for k in range(10)]
    radii = [outer if k % 2 == 0 else inner for k in range(10)]
    return [(r * float(np.cos(a)), r * float(np.sin(a))) for r, a in zip(radii, angles, strict=True)]


_ARM: Final = 0.36
OUTLINES: Final[dict[str, npt.NDArray[np.float64]]] = {
    "square": _polygon([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]),
    "triangle": _polygon([(0.0, -1.0), (1.0, 0.732), (-1.0, 0.732)]),
    "star": _polygon(_star(1.05, 0.45)),
    "cross": _polygon(
        [
            (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
            (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
        ]
    ),
}  # fmt: skip
"""Corners of each shape but the circle, y downwards, inside [-1, 1]²; multiplied by the radius when drawn."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What a plain caption says: a shape, its colour, the background's colour."""

    shape: str
    colour: str
    background: str

    @property
    def prompt(self) -> str:
        """The plain form: `a red circle on a blue background`."""
        return f"{article(self.colour)} {self.colour} {self.shape} on {article(self.background)} {self.background} background"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture. `centre` is in fractions of width and height, `radius` in fractions of the shorter side."""

    combination: Combination
    size: str
    place: str
    centre: tuple[float, float]
    radius: float


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def all_combinations() -> tuple[Combination, ...]:
    """All 280: five shapes, eight colours, seven other colours for the background."""
    return tuple(
        Combination(shape=shape, colour=colour, background=background)
        for shape in SHAPES
        for colour in PALETTE
        for background in PALETTE
        if colour != background
    )


def _held_out() -> frozenset[Combination]:
    """100 combinations kept from training, in an order that no library version can change.

    The 56 pairs of colours lose one or two of their five shapes each and every shape loses 20 pairs, so that training
    still shows every pair of colours, and every shape in every colour and on every background.
    """
    pairs = sorted(
        ((colour, background) for colour in PALETTE for background in PALETTE if colour != background),
        key=lambda pair: sha256(" on ".join(pair).encode()).digest(),
    )
    twice = HELD_OUT_COUNT - len(pairs)
    losing = [pair for index, pair in enumerate(pairs) for _ in range(2 if index < twice else 1)]
    return frozenset(
        Combination(shape=SHAPES[index % len(SHAPES)], colour=colour, background=background)
        for index, (colour, background) in enumerate(losing)
    )


_HELD_OUT: Final = _held_out()
HELD_OUT: Final = tuple(c for c in all_combinations() if c in _HELD_OUT)
TRAINING: Final = tuple(c for c in all_combinations() if c not in _HELD_OUT)


def sample_scene(rng: random.Random, combinations: Sequence[Combination] = TRAINING) -> Scene:
    """A scene at random. Half of them are centred, and those of medium size are what a plain caption means."""
    combination = combinations[int(rng.random() * len(combinations))]
    size = rng.choices(("tiny", "small", "medium", "large"), (0.08, 0.17, 0.55, 0.20))[0]
    centred = size == "large" or rng.random() < 0.5
    place = "centre" if centred else rng.choice([p for p in PLACES if p != "centre"])
    low, high = {
        "tiny": (0.09, 0.12),
        "small": (0.14, 0.18),
        "medium": (0.25, 0.33) if centred else (0.20, 0.24),
        "large": (0.39, 0.44),
    }[size]
    radius = low + (high - low) * rng.random()
    jitter = 0.05 if centred else 0.03
    reach = radius + _MARGIN
    x, y = (
        min(max(target + jitter * (2 * rng.random() - 1), reach), 1 - reach)
        for target in (_target(place, "left", "right"), _target(place, "top", "bottom"))
    )
    return Scene(combination=combination, size=size, place=place, centre=(x, y), radius=radius)


def _target(place: str, low: str, high: str) -> float:
    """Where a place lies along one axis, as a fraction."""
    return 0.25 if low in place else 0.75 if high in place else 0.5


def mask(shape: str, *, width: int, height: int, centre: tuple[float, float], half_extent: tuple[float, float]) -> Image.Image:
    """The shape as coverage, an 8-bit image of width × height.

    `centre` and `half_extent` (what one unit of the outline measures along x and y) are in pixels.
    """
    scale = _SUPERSAMPLING
    canvas = Image.new("L", (width * scale, height * scale))
    pen = ImageDraw.Draw(canvas)
    (x, y), (rx, ry) = centre, half_extent
    if shape == "circle":
        pen.ellipse(((x - rx) * scale, (y - ry) * scale, (x + rx) * scale - 1, (y + ry) * scale - 1), fill=255)
    else:
        corners = [((x + rx * px) * scale - 0.5, (y + ry * py) * scale - 0.5) for px, py in OUTLINES[shape]]
        pen.polygon(corners, fill=255)
    return canvas.reduce(scale)


def draw(scene: Scene, *, width: int = 128, height: int = 128) -> Image.Image:
    """The scene as an RGB picture of width × height pixels, with smooth edges."""
    radius = scene.radius * min(width, height)
    picture = Image.new("RGB", (width, height), PALETTE[scene.combination.background])
    coverage = mask(
        scene.combination.shape,
        width=width,
        height=height,
        centre=(scene.centre[0] * width, scene.centre[1] * height),
        half_extent=(radius, radius),
    )
    picture.paste(PALETTE[scene.combination.colour], mask=coverage)
    return picture
