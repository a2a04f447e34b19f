"""Makes `models/tiny-sdxl/` from nothing but this code: `python -m tools.tiny_sdxl.train --out models/tiny-sdxl`."""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging

from tools.tiny_sdxl import models
from tools.tiny_sdxl.diffusion import Encoders, train_diffusion
from tools.tiny_sdxl.evaluate import count, held_out_pictures, load
from tools.tiny_sdxl.learning import Budget
from tools.tiny_sdxl.pool import describe, fill_shelves, plan_blocks
from tools.tiny_sdxl.shapes import HELD_OUT
from tools.tiny_sdxl.tokenizer import Vocabulary, learn_vocabulary, save_tokenizers
from tools.tiny_sdxl.vae import FREE_SHARE, train_vae

STEPS: Final = 8000  # of either phase; about eight minutes on an H100
_VAE_TIME_SHARE: Final = 0.42  # where the clock decides
_SAVING_SECONDS: Final = 10
_SCENES: Final = 131_072


def train(out: Path, *, start_from: Path | None, device: torch.device, seed: int, budget: Budget, scenes: int) -> None:
    """Both phases, from planning to the saved folder."""
    started = time.monotonic()
    vocabulary = learn_vocabulary()
    save_tokenizers(vocabulary, out / "tokenizer", out / "tokenizer_2")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are parallel enough
    with ProcessPoolExecutor(os.cpu_count()) as workers:  # before CUDA starts, which does not survive a fork
        described = list(workers.map(partial(describe, tokenizer=out / "tokenizer"), plan_blocks(scenes, seed)))
    print(f"{sum(item.block.count for item in described)} scenes described after {time.monotonic() - started:.0f} s", flush=True)
    generator = torch.Generator(device).manual_seed(seed)
    shelves = fill_shelves(described, free_share=FREE_SHARE, generator=generator)
    print(f"painted after {time.monotonic() - started:.0f} s", flush=True)

    torch.manual_seed(seed)
    vae, unet, encoders = _fresh(vocabulary) if start_from is None else _former(start_from, vocabulary)
    vae_budget = Budget(steps=budget.steps, seconds=budget.seconds * _VAE_TIME_SHARE)
    vae = train_vae(vae.to(device), shelves, budget=vae_budget, seed=seed)

    def evaluate(unet: UNet2DConditionModel, encoders: Encoders) -> str:
        pipe = models.assemble(out, vocabulary, vae, unet, encoders)
        pipe.set_progress_bar_config(disable=True)
        return str(count(held_out_pictures(pipe, batch=100), HELD_OUT))

    seconds_left = budget.seconds - _SAVING_SECONDS - (time.monotonic() - started)
    unet, encoders = train_diffusion(
        unet.to(device),
        (encoders[0].to(device), encoders[1].to(device)),
        vae,
        shelves,
        budget=Budget(steps=budget.steps, seconds=seconds_left),
        seed=seed,
        evaluate=evaluate,
    )
    models.save(models.assemble(out, vocabulary, vae, unet, encoders), out, vocabulary)
    print(f"saved to {out} after {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


Parts = tuple[AutoencoderKL, UNet2DConditionModel, Encoders]


def _fresh(vocabulary: Vocabulary) -> Parts:
    return models.build_vae(), models.build_unet(), models.build_text_encoders(vocabulary)


def _former(model: Path, vocabulary: Vocabulary) -> Parts:
    """The parts as they are configured here, with the weights of a saved folder."""
    pipe = load(model, "cpu", torch.float32)
    vae, unet, encoders = _fresh(vocabulary)
    vae.load_state_dict(pipe.vae.state_dict())
    unet.load_state_dict(pipe.unet.state_dict())
    encoders[0].load_state_dict(pipe.text_encoder.state_dict())
    encoders[1].load_state_dict(pipe.text_encoder_2.state_dict())
    return vae, unet, encoders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--start-from", type=Path, help="go on from the weights of such a folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=_SCENES, help="how many pictures to draw")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--steps", type=int, default=STEPS, help="steps of the autoencoder, and then of the UNet")
    limit.add_argument("--minutes", type=float, help="stop by the clock instead; not repeatable to the bit")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # diffusers warns of every change of precision
    by_clock = arguments.minutes is not None
    budget = Budget(steps=10**9, seconds=arguments.minutes * 60) if by_clock else Budget(steps=arguments.steps)
    train(
        arguments.out,
        start_from=arguments.start_from,
        device=torch.device(arguments.device),
        seed=arguments.seed,
        budget=budget,
        scenes=arguments.scenes,
    )


if __name__ == "__main__":
    main()
