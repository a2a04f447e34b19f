"""Scaling between the VAE's own latents and those that the UNet sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LatentScale:
    """Affine map between a VAE's raw latents and the UNet's: z = (raw - offset) * gain per channel, and back, in fp32.

    gain = scaling_factor / latents_std and offset = latents_mean, as diffusers' SDXL pipelines have
    it (prepare_latents and __call__ of 0.42.1); without the two, gain = scaling_factor, and offset =
    shift_factor as in its SD3 and Flux pipelines.
    """

    def __init__(self, config: Any, device: torch.device | str) -> None:
        """`config` is a diffusers AutoencoderKL's."""

        def per_channel(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

        mean = getattr(config, "latents_mean", None)
        std = getattr(config, "latents_std", None)
        self._factor: float = config.scaling_factor
        self._std = None if std is None else per_channel(std)
        self._offset = per_channel(mean if mean is not None else [getattr(config, "shift_factor", None) or 0.0])

    def to_unet(self, raw: Tensor) -> Tensor:
        """[n, channels, h, w] out of the encoder -> fp32 latents for the UNet."""
        latents = (raw.float() - self._offset) * self._factor
        return latents if self._std is None else latents / self._std

    def to_vae(self, latents: Tensor) -> Tensor:
        """[n, channels, h, w] as the UNet has them -> fp32 latents for the decoder."""
        latents = latents.float()
        return (latents if self._std is None else latents * self._std) / self._factor + self._offset
