"""The first phase: an autoencoder that gives drawn shapes back crisply."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Final, cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny_sdxl.learning import Budget, Learner
from tools.tiny_sdxl.models import LATENT_CHANNELS
from tools.tiny_sdxl.pool import SIZES, Shelf, from_bytes

FREE_SHARE: Final = 0.25  # of each batch: pictures beyond the captions' world, see `raster.free_scenes`
_RATE: Final = 1e-3
_BATCH: Final = 32  # pictures of the native size; fewer of larger ones
_EDGE_WEIGHT: Final = 1.0
_KL_WEIGHT: Final = 1e-4  # of the mean over latents, beside a mean over pixels; enough to forgive a UNet small errors
_CHUNK: Final = 256


def train_vae(vae: AutoencoderKL, shelves: Sequence[Shelf], *, budget: Budget, seed: int) -> AutoencoderKL:
    """Train until the budget ends and return the averaged autoencoder with its scaling factor set (1 / deviation)."""
    rng = random.Random(seed)
    generator = torch.Generator(vae.device).manual_seed(seed)
    vae.to(memory_format=torch.channels_last)
    learner = Learner(nn.ModuleList([vae]), _loss, rate=_RATE, budget=budget)
    while learner.progress < 1:
        shelf = rng.choices(shelves, list(SIZES.values()))[0]
        loss = learner.step(*_batch(shelf, generator))
        if learner.steps_done % 500 == 0:
            print(f"vae  {learner.steps_done:6d} {learner.elapsed_seconds:6.1f} s  loss {loss.item():.4f}", flush=True)
    trained = cast("AutoencoderKL", learner.average[0])
    deviation = torch.cat([encode(trained, shelf.pictures[:_CHUNK]).flatten() for shelf in shelves]).std()
    trained.register_to_config(scaling_factor=round(1 / float(deviation), 5))
    print(f"vae done: {learner.steps_done} steps in {learner.elapsed_seconds:.0f} s, scale {trained.config.scaling_factor}")
    return trained


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures of 0..255 to the means of their latents, unscaled, (n, 4, height / 8, width / 8) in float32."""
    fast = copy.deepcopy(vae).to(torch.bfloat16 if pictures.is_cuda else torch.float32)
    chunks = (from_bytes(chunk).to(fast.dtype) for chunk in torch.split(pictures, _CHUNK))
    return torch.cat([fast.encode(chunk).latent_dist.mean.float() for chunk in chunks])


def _batch(shelf: Shelf, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (batch, 3, height, width) and the noise that their latents' distributions are sampled with."""
    height, width = shelf.pictures.shape[-2:]
    count = max(round(_BATCH * 128 * 128 / (width * height)), 2)
    free = round(count * FREE_SHARE)
    parts = [
        source[torch.randint(len(source), (some,), device=source.device, generator=generator)]
        for source, some in ((shelf.pictures, count - free), (shelf.free_pictures, free))
    ]
    pictures = from_bytes(torch.cat(parts))
    noise = torch.randn((count, LATENT_CHANNELS, height // 8, width // 8), device=pictures.device, generator=generator)
    return pictures, noise


def _loss(modules: nn.ModuleList, pictures: Tensor, noise: Tensor) -> Tensor:
    """Absolute error of pixels and of edges, and a little of the distance to a normal distribution."""
    vae = cast("AutoencoderKL", modules[0])
    posterior = vae.encode(pictures.to(vae.dtype)).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    latents = mean + (logvar / 2).exp() * noise
    result = vae.decode(latents.to(vae.dtype)).sample.float()
    kl = (mean**2 + logvar.exp() - 1 - logvar).mean() / 2
    loss: Tensor = functional.l1_loss(result, pictures) + _EDGE_WEIGHT * _edge_loss(result, pictures) + _KL_WEIGHT * kl
    return loss


def _edge_loss(result: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels: it keeps edges sharp and flat parts flat."""
    across: Tensor = functional.l1_loss(result.diff(dim=3), target.diff(dim=3))
    down: Tensor = functional.l1_loss(result.diff(dim=2), target.diff(dim=2))
    return torch.add(across, down)
