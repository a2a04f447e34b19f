"""Looks at a picture and says what it shows, without knowing what was asked for. numpy and Pillow only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.tiny_sdxl.shapes import OUTLINES, PALETTE, RGB, SHAPES, Combination, mask

Pixels = npt.NDArray[np.float64]
_BORDER: Final = 3  # pixels; drawn shapes keep 4 % of the shorter side clear
_BLEND: Final = 0.5  # of the way from the background to the shape's colour counts as shape
_CORE_SHARE: Final = 0.3  # of the pixels unlike the background; their median is the shape's colour
_FAINTEST: Final = 12.0  # CIE Lab distance below which a pixel is background with noise in it
_LEAST_COVER: Final = 2  # pixels of a row or column that must be shape, so that specks do not stretch the bounding box


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was seen. `shape` and `colour` are None on a picture without a shape."""

    background: str
    colour: str | None
    shape: str | None
    overlap: float
    """Intersection over union with the drawn template of `shape`, 0 to 1."""

    def agrees(self, asked: Combination) -> tuple[bool, bool, bool]:
        """Whether the shape, its colour and the background's colour are those that were asked for."""
        return self.shape == asked.shape, self.colour == asked.colour, self.background == asked.background


def look(picture: Image.Image) -> Verdict:
    """Judge an RGB picture of one shape on a plain background."""
    rgb = np.asarray(picture.convert("RGB"), dtype=np.float64)
    border = np.concatenate([part.reshape(-1, 3) for part in _edges(rgb)])
    background = np.median(border, axis=0)
    lab = to_lab(rgb)
    away = np.linalg.norm(lab - to_lab(background), axis=-1)
    strange = away > _FAINTEST
    if np.count_nonzero(strange) < _LEAST_COVER**2:
        return Verdict(background=nearest_colour(background), colour=None, shape=None, overlap=0.0)
    core = away >= np.quantile(away[strange], 1 - _CORE_SHARE)
    colour = np.median(rgb[core], axis=0)
    axis = colour - background
    found = (rgb - background) @ axis > _BLEND * float(axis @ axis)
    shape, overlap = _best_shape(found)
    return Verdict(background=nearest_colour(background), colour=nearest_colour(colour), shape=shape, overlap=overlap)


def _edges(rgb: Pixels) -> tuple[Pixels, ...]:
    return rgb[:_BORDER], rgb[-_BORDER:], rgb[:, :_BORDER], rgb[:, -_BORDER:]


def _best_shape(found: npt.NDArray[np.bool_]) -> tuple[str | None, float]:
    """The shape whose template, fitted to the bounding box of `found` (height, width), overlaps best."""
    rows = np.flatnonzero(found.sum(axis=1) >= _LEAST_COVER)
    columns = np.flatnonzero(found.sum(axis=0) >= _LEAST_COVER)
    if not rows.size or not columns.size:
        return None, 0.0
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = found[top:bottom, left:right]
    scores = {shape: _overlap(cut, _template(shape, width=cut.shape[1], height=cut.shape[0])) for shape in SHAPES}
    best = max(scores, key=lambda shape: scores[shape])
    return best, scores[best]


def _template(shape: str, *, width: int, height: int) -> npt.NDArray[np.bool_]:
    """The shape drawn so that its bounding box is width × height."""
    reach = np.abs(OUTLINES[shape]).max(axis=0) if shape in OUTLINES else np.ones(2)
    half_extent = (width / 2 / float(reach[0]), height / 2 / float(reach[1]))
    drawn = mask(shape, width=width, height=height, centre=(width / 2, height / 2), half_extent=half_extent)
    return np.asarray(drawn) > 127


def _overlap(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(a & b)) / max(int(np.count_nonzero(a | b)), 1)


def nearest_colour(rgb: Pixels | RGB) -> str:
    """The palette's name for a colour, by distance in CIE Lab."""
    lab = to_lab(np.asarray(rgb, dtype=np.float64))
    return min(PALETTE, key=lambda name: float(np.linalg.norm(to_lab(np.asarray(PALETTE[name], dtype=np.float64)) - lab)))


def to_lab(rgb: Pixels) -> Pixels:
    """sRGB in 0..255, shape (..., 3), to CIE Lab under D65 (IEC 61966-2-1 and CIE 15)."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
