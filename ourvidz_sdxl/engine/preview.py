"""What a painting looks like so far: one pixel for each latent, its colour linear in the latent's channels.

The matrix is fitted to the checkpoint's own VAE, which encodes a picture of known colours once. Published constants are for others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PATCH = 32  # pixels of one colour: its inner latents see nothing of its neighbours


@dataclass(kw_only=True)
class SoFar:
    """Latents [batch, 4, h, w] before and after the last step, and the noise levels (sigma) of both, where they are known."""

    before: Tensor
    after: Tensor
    sigma_before: float | None = None
    sigma_after: float | None = None

    def expected(self, index: int) -> Tensor:
        """The latents [4, h, w] that image `index` is heading for.

        A step of Euler's moves along the line from what the network expects in the end, x0: x = x0 + sigma d (Karras et al. 2022,
        algorithm 1). Where the noise levels are not known, it is the latents themselves, noise and all.
        """
        before, after = self.before[index].float(), self.after[index].float()
        if self.sigma_before is None or self.sigma_after is None:
            return after
        return after + (after - before) * (self.sigma_after / (self.sigma_before - self.sigma_after))


class Projection:
    def __init__(self, encode: Callable[[Image.Image], Tensor], edge: int) -> None:
        """`encode`: an RGB image of `edge` x `edge` pixels -> its latents [1, 4, h, w]."""
        patches = edge // PATCH
        colours = np.random.default_rng(0).integers(0, 256, (patches, patches, 3), dtype=np.uint8)
        latents = encode(Image.fromarray(colours).resize((edge, edge), Image.Resampling.NEAREST))[0].float()
        side = latents.shape[-1] // patches  # latents of a patch
        inner = slice(side // 4, max(side // 4 + 1, side - side // 4))
        by_patch = latents.view(len(latents), patches, side, patches, side)[:, :, inner, :, inner]
        inputs = _with_one(by_patch.permute(1, 3, 2, 4, 0).flatten(2, 3))  # [patches, patches, latents, 5]
        wanted = torch.from_numpy(colours).to(latents)[:, :, None].expand(-1, -1, inputs.shape[2], -1)
        fitted = torch.linalg.lstsq(inputs.flatten(0, 2).double().cpu().nan_to_num(), wanted.flatten(0, 2).double().cpu()).solution
        self._matrix = fitted.to(latents)

    def __call__(self, latents: Tensor) -> Image.Image:
        """[4, h, w] -> an RGB image of w x h pixels."""
        pixels = _with_one(latents.float().permute(1, 2, 0)) @ self._matrix
        array: Any = pixels.nan_to_num().round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return Image.fromarray(array)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)
