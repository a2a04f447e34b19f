"""Drawing many pictures at once with torch, on whatever device trains.

The outlines are those of `shapes.py`; a test holds the two ways of drawing together.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from tools.tiny_sdxl.shapes import OUTLINES, SHAPES

_LAYERS: Final = 5  # shapes in a free scene at most
_SURE_LAYERS: Final = 3  # and at least
_CORNERS: Final = max(len(outline) for outline in OUTLINES.values())


def _corner_table() -> Tensor:
    """Corners of every shape as (shapes, corners, 2); shorter outlines repeat their last corner, the circle has none."""
    table = np.zeros((len(SHAPES), _CORNERS, 2), dtype=np.float32)
    for index, shape in enumerate(SHAPES):
        if shape in OUTLINES:
            outline = OUTLINES[shape]
            table[index] = outline[np.minimum(np.arange(_CORNERS), len(outline) - 1)]
    return torch.from_numpy(table)


def coverage(shape: Tensor, centre: Tensor, radius: Tensor, *, width: int, height: int) -> Tensor:
    """How much of each pixel the shape covers: (batch, 1, height, width) in [0, 1].

    `shape` (batch,) holds indices into `SHAPES`; `centre` (batch, 2) as x, y and `radius` (batch,) are in pixels. The
    edge is smooth over one pixel of signed distance.
    """
    device = centre.device
    y, x = torch.meshgrid(torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij")
    px = x - centre[:, 0, None, None]
    py = y - centre[:, 1, None, None]
    corners = _corner_table().to(device)[shape] * radius[:, None, None]
    circle = torch.hypot(px, py) - radius[:, None, None]
    distance = torch.where((shape == SHAPES.index("circle"))[:, None, None], circle, _polygon_distance(px, py, corners))
    return (0.5 - distance).clamp(0, 1)[:, None]


def _polygon_distance(px: Tensor, py: Tensor, corners: Tensor) -> Tensor:
    """Signed distance (negative inside) of each point (batch, height, width) to a polygon (batch, corners, 2).

    The nearest edge gives the distance, the parity of edges crossed by a ray gives the sign (the method of Inigo
    Quilez, https://iquilezles.org/articles/distfunctions2d/).
    """
    squared = torch.full_like(px, torch.inf)
    inside = torch.zeros_like(px, dtype=torch.bool)
    for index in range(corners.shape[1]):
        (x0, y0), (x1, y1) = (corners[:, i, :, None, None].unbind(1) for i in (index, index - 1))
        ex, ey, wx, wy = x1 - x0, y1 - y0, px - x0, py - y0
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey).clamp(min=1e-9)).clamp(0, 1)
        squared = torch.minimum(squared, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        above, below, left = py >= y0, py < y1, ex * wy > ey * wx
        inside ^= (above & below & left) | ~(above | below | left)
    return torch.where(inside, -1.0, 1.0) * squared.sqrt()


def paint(background: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """A shape of one colour (batch, 3) laid over a background (batch, 3, height, width), by its coverage."""
    return torch.lerp(background, colour[:, :, None, None], alpha)


def free_scenes(count: int, *, width: int, height: int, generator: torch.Generator) -> Tensor:
    """Pictures for the VAE alone, (count, 3, height, width) in [-1, 1]: three to five shapes of any colours on a gradient.

    They teach it colours, sizes and overlaps that no caption names, so that a reference picture of another kind
    survives too. None is a scene of one shape on a plain background, so none shows a held-out combination.
    """
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    slope = uniform(2, count, 1, 1, 1) * 2 - 1
    x = torch.linspace(-1, 1, width, device=device)
    y = torch.linspace(-1, 1, height, device=device)[:, None]
    ramp = (0.5 + (slope[0] * x + slope[1] * y) / 2).clamp(0, 1)
    ends = uniform(2, count, 3, 1, 1) * 2 - 1
    picture = torch.lerp(ends[0], ends[1], ramp)
    total = count * _LAYERS
    alpha = coverage(
        torch.randint(len(SHAPES), (total,), device=device, generator=generator),
        uniform(total, 2) * torch.tensor([width, height], device=device),
        (0.05 + 0.4 * uniform(total) ** 2) * min(width, height),
        width=width,
        height=height,
    ).view(_LAYERS, count, 1, height, width)
    for layer in range(_LAYERS):
        shown = uniform(count) < (1.0 if layer < _SURE_LAYERS else 0.5)
        picture = paint(picture, uniform(count, 3) * 2 - 1, alpha[layer] * shown[:, None, None, None])
    return picture
