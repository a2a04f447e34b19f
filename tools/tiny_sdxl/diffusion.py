"""The second phase: both text encoders and the UNet together, on latents that the autoencoder made once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tools.tiny_sdxl.learning import Budget, Learner
from tools.tiny_sdxl.models import build_scheduler
from tools.tiny_sdxl.pool import SIZES, Shelf
from tools.tiny_sdxl.vae import encode

_RATE: Final = 6e-4
_BATCH: Final = 256  # pictures of the native size; fewer of larger ones
_NO_TEXT_SHARE: Final = 0.04  # zeros for text, which is what SDXL compares with when there is no negative prompt
_OFFSET_NOISE: Final = 0.05  # as SDXL 1.0: the noise's mean must not betray the picture's brightness
_SNR_LIMIT: Final = 5.0  # min-SNR weighting, Hang et al. 2023

Encoders = tuple[CLIPTextModel, CLIPTextModelWithProjection]


def train_diffusion(
    unet: UNet2DConditionModel,
    encoders: Encoders,
    vae: AutoencoderKL,
    shelves: Sequence[Shelf],
    *,
    budget: Budget,
    seed: int,
    evaluate: Callable[[UNet2DConditionModel, Encoders], str],
) -> tuple[UNet2DConditionModel, Encoders]:
    """Train until the budget ends and return the averaged models. `evaluate` is asked for a line twice."""
    rng = random.Random(seed)
    generator = torch.Generator(unet.device).manual_seed(seed)
    signal = build_scheduler().alphas_cumprod.to(unet.device)
    latents = [encode(vae, shelf.pictures) * vae.config.scaling_factor for shelf in shelves]
    unet.to(memory_format=torch.channels_last)
    learner = Learner(nn.ModuleList([unet, *encoders]), _loss, rate=_RATE, budget=budget)
    reports = 0
    while learner.progress < 1:
        choice = rng.choices(range(len(shelves)), list(SIZES.values()))[0]
        loss = learner.step(*_batch(latents[choice], shelves[choice], signal, generator))
        if learner.steps_done % 500 == 0:
            print(f"unet {learner.steps_done:6d} {learner.elapsed_seconds:6.1f} s  loss {loss.item():.4f}", flush=True)
        if learner.progress >= (reports + 1) / 2:
            reports += 1
            result = evaluate(*_parts(learner.average))
            print(f"unet {learner.steps_done:6d} {learner.elapsed_seconds:6.1f} s  {result}", flush=True)
    print(f"unet done: {learner.steps_done} steps in {learner.elapsed_seconds:.0f} s")
    return _parts(learner.average)


def encode_text(encoders: Encoders, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What SDXL's pipeline makes of tokens (batch, 77): context (batch, 77, both widths) and pooled (batch, width).

    `ids` are the first tokenizer's; the second's differ only in what fills up after the end, 0 there.
    """
    end = encoders[0].config.eos_token_id
    after_end = (ids == end).cumsum(1) > 1
    first = encoders[0](ids, output_hidden_states=True)
    second = encoders[1](ids.masked_fill(after_end, 0), output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def _batch(latents: Tensor, shelf: Shelf, signal: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random rows of one picture size, with everything random that the loss needs; see `_loss` for the order."""
    device = latents.device
    count = max(round(_BATCH * 16 * 16 / (latents.shape[-1] * latents.shape[-2])), 2)
    rows = torch.randint(len(latents), (count,), device=device, generator=generator)
    noise = torch.randn((count, *latents.shape[1:]), device=device, generator=generator)
    offset = torch.randn((count, latents.shape[1], 1, 1), device=device, generator=generator)
    timesteps = torch.randint(len(signal), (count,), device=device, generator=generator)
    has_text = torch.rand((count, 1), device=device, generator=generator) >= _NO_TEXT_SHARE
    return (
        latents[rows], noise + _OFFSET_NOISE * offset, timesteps, signal[timesteps], shelf.ids[rows], shelf.time_ids[rows], has_text
    )  # fmt: skip


def _loss(
    modules: nn.ModuleList,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    kept: Tensor,
    ids: Tensor,
    time_ids: Tensor,
    has_text: Tensor,
) -> Tensor:
    """Weighted error of the predicted noise. `kept` is how much of the latents' variance each timestep leaves, (batch,)."""
    unet, encoders = _parts(modules)
    share = kept[:, None, None, None]
    noisy = (share.sqrt() * latents + (1 - share).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    context, pooled = encode_text(encoders, ids)
    predicted = unet(
        noisy.to(unet.dtype),
        timesteps,
        context * has_text[:, None],
        added_cond_kwargs={"text_embeds": pooled * has_text, "time_ids": time_ids},
    ).sample
    error = functional.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))
    ratio = kept / (1 - kept)
    return (error * ratio.clamp(max=_SNR_LIMIT) / ratio).mean()


def _parts(modules: nn.ModuleList) -> tuple[UNet2DConditionModel, Encoders]:
    unet, first, second = modules
    return cast("UNet2DConditionModel", unet), (cast("CLIPTextModel", first), cast("CLIPTextModelWithProjection", second))
