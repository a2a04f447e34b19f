"""What each acceleration gains and how far it moves the pictures: seconds an image with and without it, PSNR and SSIM of the two.

    python -m benchmarks.accelerations                                            the bundled model
    python -m benchmarks.accelerations --checkpoint X.safetensors [--lora Y.safetensors] [--out DIR]

Without --lora a random one is made, on every layer as SDXL-Lightning's: it costs the same and says nothing of pictures. Nor does a
checkpoint of random weights (`tools/single_file.py --random`). So the pictures that are compared are the bundled model's, those of
--checkpoint where --trained says that it is, and those in few steps with a --lora only.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmarks.results_file import FOLDER, write_results
from ourvidz_sdxl.engine import Engine, FastOptions, load_engine
from ourvidz_sdxl.engine.load import SDXL_BASE, empty_model
from ourvidz_sdxl.engine.original_names import original_layer, unet_modules
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.plan import FewStep, make_plan
from ourvidz_sdxl.similarity import similarity

FULL_SIZE = "full size"
BUNDLED = Path(__file__).parents[1] / "models" / "tiny-sdxl"
RANK = 64  # SDXL-Lightning's
COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("circle", "square", "triangle", "star")
PROMPTS = [f"a {COLOURS[i]} {SHAPES[i]} on a {COLOURS[i - 1]} background" for i in range(len(SHAPES))]
Painted = tuple[float, list[Image.Image]]  # the median of the seconds an image, and an image for each prompt


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """`engine` and `plan` are what `load_engine` and `make_plan` get for it. `faithful`: whether its pictures mean something."""

    name: str
    job_type: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    faithful: bool = True
    bar_seconds: float | None = None  # an image of the full-size model, on one H100


def accelerations(lora: Path, *, trained_lora: bool) -> list[Acceleration]:
    fp8 = Acceleration(name="fp8", job_type="sdxl_image_high", engine={"options": FastOptions(fp8=True)}, bar_seconds=0.55)
    return [
        Acceleration(name="guidance in 0.15-0.9", job_type="sdxl_image_high", plan={"guidance_interval": (0.15, 0.9)}),
        Acceleration(name="guidance in 0.1-0.8", job_type="sdxl_image_high", plan={"guidance_interval": (0.1, 0.8)}),
        *([fp8] if torch.cuda.is_available() else []),
        Acceleration(
            name="8 steps",
            job_type="sdxl_image_fast",
            engine={"few_step_lora": lora},
            plan={"few_step": FewStep(lora=lora.stem, steps=8)},
            faithful=trained_lora,
        ),
    ]


def paint(engine: Engine, job_type: str, options: Mapping[str, Any]) -> Painted:
    images: list[Image.Image] = []
    seconds = []
    for prompt in (PROMPTS[0], *PROMPTS):  # the first is a warm-up
        row = {"id": UUID(int=0), "user_id": UUID(int=0), "claims": 1, "job_type": job_type, "prompt": prompt, "seed": 1}
        plan = make_plan(Job.from_row(row), native_size=engine.native_size, random_seed=0, **options)
        engine.encode_prompts(plan)  # as a worker does while another job paints
        started = time.perf_counter()
        images += engine.paint(plan, None, lambda _done, _total: None)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), images[1:]


def loaded(checkpoint: Path, options: Mapping[str, Any]) -> tuple[Engine, float, int | None]:
    """With the seconds that it took, and the peak of memory in MiB."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    engine = load_engine(checkpoint, **options)
    return engine, time.perf_counter() - started, engine.peak_vram_mb()


def measure(
    checkpoint: Path, label: str, asked: Sequence[Acceleration], *, pictures: bool
) -> tuple[list[dict[str, Any]], str | None]:
    """The figures, and the GPU's name."""
    figures: list[dict[str, Any]] = []
    engine, load_seconds, memory = loaded(checkpoint, {})
    gpu = engine.gpu
    without = {job_type: paint(engine, job_type, {}) for job_type in sorted({one.job_type for one in asked})}
    for one in asked:
        name = f"{label}, {one.name}"
        if one.engine:
            del engine
            engine, seconds, its_memory = loaded(checkpoint, one.engine)
            figures.append(figure(f"{name}: load", "s", seconds, load_seconds))
            if memory and its_memory:
                figures.append(figure(f"{name}: memory after loading", "MiB", its_memory, memory))
        (seconds, images), (peer, expected) = paint(engine, one.job_type, one.plan), without[one.job_type]
        figures.append(figure(f"{name}: an image", "s", seconds, peer) | {"bar": one.bar_seconds if label == FULL_SIZE else None})
        if pictures and one.faithful:
            pairs = [*zip(images, expected, strict=True)]
            figures.append(figure(f"{name}: PSNR", "dB", statistics.mean(psnr(*pair) for pair in pairs), better="higher"))
            figures.append(figure(f"{name}: SSIM", "", statistics.mean(similarity(*pair) for pair in pairs), better="higher"))
    return figures, gpu


def psnr(image: Image.Image, expected: Image.Image) -> float:
    off = np.asarray(image, dtype=np.float64) - np.asarray(expected)
    return float(10 * np.log10(255**2 / max((off**2).mean(), 1e-9)))


def figure(name: str, unit: str, ours: float, peer: float | None = None, *, better: str = "lower") -> dict[str, Any]:
    peers = {"peer": None, "peer_name": None} if peer is None else {"peer": round(peer, 3), "peer_name": "without"}
    return {"name": name, "unit": unit, "ours": round(ours, 3), **peers, "bar": None, "better": better}


def random_lora(checkpoint: Path, file: Path) -> Path:
    """For every layer of the checkpoint's UNet, in fp16, named as kohya's scripts do."""
    unet = empty_model("unet", checkpoint if checkpoint.is_dir() else SDXL_BASE)
    modules = unet_modules(unet.config)
    tensors = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs, inputs, *kernel = layer.weight.shape
            flat = f"lora_unet_{original_layer(name, modules).replace('.', '_')}"
            tensors[f"{flat}.lora_down.weight"] = torch.randn(RANK, inputs, *kernel, dtype=torch.float16) / 100
            tensors[f"{flat}.lora_up.weight"] = torch.randn(outputs, RANK, *[1] * len(kernel), dtype=torch.float16) / 100
            tensors[f"{flat}.alpha"] = torch.tensor(float(RANK), dtype=torch.float16)
    save_file(tensors, file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--trained", action="store_true", help="the checkpoint's pictures mean something")
    parser.add_argument("--lora", type=Path, help="a few-step LoRA for the checkpoint, of 8 steps")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lora = random_lora(BUNDLED, Path(folder) / "random.safetensors")
        figures, gpu = measure(BUNDLED, "bundled model", accelerations(lora, trained_lora=False), pictures=True)
        if checkpoint := options.checkpoint:
            lora = options.lora or random_lora(checkpoint, Path(folder) / "random-full-size.safetensors")
            asked = accelerations(lora, trained_lora=options.lora is not None)
            more, gpu = measure(checkpoint, FULL_SIZE, asked, pictures=options.trained)
            figures += more
    write_results("accelerations", figures, packages=["torch", "diffusers", "transformers"], gpu=gpu, folder=options.out)


if __name__ == "__main__":
    main()
