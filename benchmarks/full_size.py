"""A full-size SDXL out of one file in the original key layout, loaded and painted by the worker's own engine, without a network.

The weights are random (`tools/single_file.py --random` makes the file): they cost the same time and memory as trained ones and say
nothing about pictures. Needs a CUDA GPU.

    python -m benchmarks.full_size --checkpoint sdxl.safetensors
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image

from benchmarks.results_file import FOLDER, write_results
from ourvidz_sdxl.engine import Engine, load_engine
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.plan import make_plan
from ourvidz_sdxl.similarity import similarity

ROUNDS = 3
USER = "22222222-2222-4222-8222-222222222222"
REFERENCE: dict[str, Any] = {"reference_image_path": f"{USER}/x.png"}
JOBS: dict[str, dict[str, Any]] = {
    "text-to-image, batch 1": {},
    "text-to-image, batch 3": {"batch_size": 3},
    "text-to-image, batch 6": {"batch_size": 6},
    "fast (15 steps), batch 1": {"job_type": "sdxl_image_fast"},
    "modify at strength 0.5": {**REFERENCE, "reference_strength": 0.5},
    "exact copy": {**REFERENCE, "exact_copy_mode": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()

    started = time.perf_counter()
    engine = load_engine(options.checkpoint)
    torch.cuda.synchronize()
    figures = [figure("load", "s", time.perf_counter() - started), figure("peak memory, load", "MiB", engine.peak_vram_mb() or 0)]

    reference = Image.effect_mandelbrot((engine.native_size, engine.native_size), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    for name, columns in JOBS.items():
        row = {"id": uuid4(), "user_id": USER, "claims": 1, "job_type": "sdxl_image_high", "prompt": "a cat", "seed": 1}
        size = reference.size if "reference_image_path" in columns else None
        plan = make_plan(Job.from_row(row | columns), native_size=engine.native_size, random_seed=0, reference_size=size)
        seconds = []
        for _ in range(ROUNDS + 1):  # the first is a warm-up
            started = time.perf_counter()
            images = engine.paint(plan, reference if size else None, lambda _done, _total: None)
            seconds.append(time.perf_counter() - started)
            assert [image.size for image in images] == [(plan.width, plan.height)] * plan.batch_size
        figures.append(figure(f"{name}, an image", "s", statistics.median(seconds[1:]) / plan.batch_size))
        figures.append(figure(f"peak memory, {name}", "MiB", engine.peak_vram_mb() or 0))
    figures += alone_against_a_batch(engine)
    write_results("full_size", figures, packages=["torch", "diffusers", "transformers"], gpu=engine.gpu, folder=options.out)


def alone_against_a_batch(engine: Engine) -> list[dict[str, Any]]:
    """How far the images of a batch of 6 are from the same seeds painted alone: the batch size may change the order of sums."""
    row = {"id": uuid4(), "user_id": USER, "claims": 1, "job_type": "sdxl_image_high", "prompt": "a cat"}
    paintings = []
    for columns in ({"seed": 1, "batch_size": 6}, *({"seed": 1 + index} for index in range(6))):
        plan = make_plan(Job.from_row(row | columns), native_size=engine.native_size, random_seed=0)
        paintings.append(engine.paint(plan, None, lambda _done, _total: None))
    batch, alone = paintings[0], [painting[0] for painting in paintings[1:]]
    off = np.stack([np.asarray(a, dtype=int) - np.asarray(b) for a, b in zip(batch, alone, strict=True)])
    least_similar = min(similarity(a, b) for a, b in zip(batch, alone, strict=True))
    return [
        figure("alone against batch of 6, mean difference", "of 255", float(np.abs(off).mean())),
        figure("alone against batch of 6, 99.9th percentile", "of 255", float(np.quantile(np.abs(off), 0.999))),
        figure("alone against batch of 6, largest difference", "of 255", float(np.abs(off).max())),
        figure("alone against batch of 6, least similarity", "SSIM", least_similar) | {"better": "higher"},
    ]


def figure(name: str, unit: str, ours: float) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": round(ours, 3), "peer": None, "peer_name": None, "bar": None, "better": "lower"}


if __name__ == "__main__":
    main()
