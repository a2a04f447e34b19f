"""Paints the 100 held-out prompts and counts what came out right: `python -m tools.tiny_sdxl.evaluate --sheet sheet.png`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from tools.tiny_sdxl.judge import look
from tools.tiny_sdxl.shapes import HELD_OUT, Combination


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many of `total` pictures show the right shape, in the right colour, on the right background."""

    shape: int
    colour: int
    background: int
    total: int

    def __str__(self) -> str:
        return f"shape {self.shape}, colour {self.colour}, background {self.background} of {self.total}"


def load(model: Path, device: str, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """The saved folder as a pipeline, with no word from the network."""
    pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=dtype, local_files_only=True).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(
    pipe: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 20,
    guidance_scale: float = 7.5,
    negative_prompt: str | None = None,
    batch: int = 10,
) -> list[Image.Image]:
    """One picture for each prompt and seed."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        negatives = None if negative_prompt is None else [negative_prompt] * len(some)
        result = pipe(
            some,
            negative_prompt=negatives,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
        )
        pictures.extend(result.images)
    return pictures


def count(pictures: Sequence[Image.Image], asked: Sequence[Combination]) -> Counts:
    """Judge each picture against what was asked for."""
    verdicts = [look(picture).agrees(combination) for picture, combination in zip(pictures, asked, strict=True)]
    shape, colour, background = (sum(column) for column in zip(*verdicts, strict=True))
    return Counts(shape=shape, colour=colour, background=background, total=len(verdicts))


def held_out_pictures(
    pipe: StableDiffusionXLPipeline, *, steps: int = 20, guidance_scale: float = 7.5, batch: int = 10
) -> list[Image.Image]:
    """A picture for each held-out combination's plain prompt, with seeds 0 to 99."""
    prompts = [combination.prompt for combination in HELD_OUT]
    return paint(pipe, prompts, seeds=range(len(prompts)), steps=steps, guidance_scale=guidance_scale, batch=batch)


def sheet(pictures: Sequence[Image.Image], columns: int = 10) -> Image.Image:
    """Pictures of one size as a grid with narrow gaps."""
    width, height = (side + 4 for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * width, rows * height), (128, 128, 128))
    for index, picture in enumerate(pictures):
        grid.paste(picture, (index % columns * width, index // columns * height))
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/tiny-sdxl"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--half", action="store_true", help="run in half precision")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--sheet", type=Path, help="write all pictures to this PNG")
    arguments = parser.parse_args()
    pipe = load(arguments.model, arguments.device, torch.float16 if arguments.half else torch.float32)
    started = time.monotonic()
    pictures = held_out_pictures(pipe, steps=arguments.steps, guidance_scale=arguments.guidance)
    seconds = (time.monotonic() - started) / len(pictures)
    print(f"guidance {arguments.guidance}, {arguments.steps} steps: {count(pictures, HELD_OUT)}; {seconds:.2f} s a picture")
    if arguments.sheet is not None:
        sheet(pictures).save(arguments.sheet)


if __name__ == "__main__":
    main()
