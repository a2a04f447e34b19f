"""The fast engine beside plain diffusers, in one process on one GPU: times, memory, and the error of each against fp32.

Full-size SDXL with random weights, 1024 x 1024, 25 Euler steps, guidance 7.5. Random weights time like trained ones and say nothing
of pictures, so the error is that of the arithmetic: PSNR of the 8-bit pixels against the plain path in fp32 on the same noise.

    python tools/single_file.py --random --device cuda --out X.safetensors
    python -m benchmarks.gpu --checkpoint X.safetensors [--out DIR]

The peer's compiled figures are not measured here, since torch.compile takes 160 s: 38.0 ms a step of 2 rows, 0.935 s an image
(an H100, torch 2.11, diffusers 0.42.1).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from benchmarks.results_file import FOLDER, write_results
from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.fast.graphs import StepShape
from ourvidz_sdxl.engine.load import load_components
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.plan import Plan, make_plan
from ourvidz_sdxl.progress import MIN_INTERVAL_SECONDS

BUNDLED = Path(__file__).resolve().parents[1] / "models" / "tiny-sdxl"
DEVICE = torch.device("cuda")
EDGE, LATENT_EDGE, TOKENS = 1024, 128, 77
Measured = dict[str, float]
EAGER, AS_GRAPH = "diffusers, eager", "diffusers' kernels as one CUDA graph"


def plan(*, with_reference: bool = False, edge: int = EDGE, **columns: Any) -> Plan:
    user = uuid4()
    row = {"id": uuid4(), "user_id": user, "claims": 1, "job_type": "sdxl_image_high", "prompt": "a cat", "seed": 1}
    if with_reference:
        row |= {"reference_image_path": f"{user}/x.png", "reference_strength": 0.5}
    size = (edge, edge) if with_reference else None
    return make_plan(Job.from_row(row | columns), native_size=edge, random_seed=0, reference_size=size)


def paint_seconds(engine: SdxlEngine, asked: Plan, rounds: int, reference: Image.Image | None = None) -> tuple[float, float, Any]:
    """The first call, the median of the others, and the images."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        images = engine.paint(asked, reference, lambda _done, _total: None)
        seconds.append(time.perf_counter() - started)
    return seconds[0], statistics.median(seconds[1:]), images


def with_previews(engine: SdxlEngine, rounds: int) -> float:
    """Seconds of a painting of which somebody is shown as much as ever: the median."""
    seconds = []
    for _ in range(rounds + 1):
        started = shown = time.perf_counter()

        def show(_done: int, _total: int) -> None:
            nonlocal shown
            if time.perf_counter() - shown >= MIN_INTERVAL_SECONDS:
                shown = time.perf_counter()
                engine.preview(0)

        engine.paint(plan(), None, show)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def milliseconds(call: Callable[[], object], rounds: int = 12) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(statistics.median(times))


def fresh() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure_images(engine: SdxlEngine, rounds: dict[int, int], into: Measured) -> Any:
    """Of each batch size: seconds an image, and the peak of memory in GB, in use and taken from the driver. Returns batch 1."""
    pictures = None
    for batch, times in rounds.items():
        fresh()
        first, seconds, images = paint_seconds(engine, plan(batch_size=batch), times)
        into |= {f"batch {batch}, first call": first, f"batch {batch}": seconds / batch}
        into |= {f"batch {batch}, in use": torch.cuda.max_memory_allocated() / 1e9}
        into |= {f"batch {batch}, reserved": torch.cuda.max_memory_reserved() / 1e9}
        pictures = pictures or images
    return pictures


def measure_ours(checkpoint: Path) -> tuple[Measured, Any]:
    ours: Measured = {}
    started = time.perf_counter()
    engine = FastEngine.load(checkpoint)
    torch.cuda.synchronize()
    ours["load"] = time.perf_counter() - started
    pictures = measure_images(engine, {1: 5, 3: 2, 6: 3}, ours)
    ours["previews"] = with_previews(engine, rounds=5)
    reference = Image.effect_mandelbrot((EDGE, EDGE), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    for name, columns in (("exact copy", {"exact_copy_mode": True}), ("modify 0.5", {"reference_strength": 0.5})):
        _, ours[name], _ = paint_seconds(engine, plan(with_reference=True, **columns), 3, reference)
    graphs = engine._graphs
    with torch.inference_mode():
        for images in (1, 6):
            shape = StepShape(images=images, height=LATENT_EDGE, width=LATENT_EDGE, tokens=TOKENS, guided=True, euler=True)
            step = graphs.step(shape)
            step.texts.normal_()
            step.times.normal_()
            step.numbers.copy_(torch.tensor([0.1, 1.0, -0.01, 7.5]))
            ours[f"step {2 * images}"] = milliseconds(step.replay)
        ours["decode"] = milliseconds(graphs.decode(LATENT_EDGE, LATENT_EDGE).replay)
        graphs.forget()  # kernels are compiled by now: what capturing itself takes
        started = time.perf_counter()
        graphs.step(shape)
        ours["capture"] = time.perf_counter() - started
    return ours, pictures


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def measure_peers(checkpoint: Path) -> tuple[Measured, Measured, Any, Any]:
    """Eager and as graphs, the eager path's images, and its text embeddings."""
    eager: Measured = {}
    engine = SdxlEngine.load(checkpoint)
    pictures = measure_images(engine, {1: 2, 3: 1, 6: 1}, eager)
    unet, vae = engine._parts.unet, engine._parts.vae

    def random(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=dtype)

    sizes = torch.tensor([[EDGE, EDGE, 0, 0, EDGE, EDGE]] * 2, device=DEVICE, dtype=torch.float16)
    rows, time_now, embeds = random(2, 4, LATENT_EDGE, LATENT_EDGE), torch.tensor(500.0, device=DEVICE), random(2, TOKENS, 2048)
    conditions = {"text_embeds": random(2, 1280), "time_ids": sizes}
    latents = random(1, 4, LATENT_EDGE, LATENT_EDGE, dtype=vae.dtype)

    def step() -> None:
        unet(rows, time_now, embeds, added_cond_kwargs=conditions, return_dict=False)

    def decode() -> None:
        vae.decode(latents)

    with torch.inference_mode():
        eager |= {"step 2": milliseconds(step), "decode": milliseconds(decode)}
        as_graph = {"step 2": milliseconds(graph_of(step).replay), "decode": milliseconds(graph_of(decode).replay)}
    return eager, as_graph, pictures, engine._text.encode("a cat", plan().negative_prompt)


@torch.inference_mode()
def in_fp32(checkpoint: Path, text: Any) -> Any:
    """The plain path with everything in fp32, from the noise and the text embeddings that the fp16 paths had."""
    parts = load_components(checkpoint, device=DEVICE, dtype=torch.float32, vae_dtype=torch.float32)
    engine = SdxlEngine(parts, DEVICE)
    asked = plan(edge=engine.native_size)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in asked.seeds]
    shape = (1, 4, engine.native_size // engine._latent_scale, engine.native_size // engine._latent_scale)
    noise = randn_tensor(shape, generator=generators, device=DEVICE, dtype=torch.float16).float()
    pipeline = engine._pipeline(StableDiffusionXLPipeline, asked.scheduler)
    latents = pipeline(
        width=asked.width,
        height=asked.height,
        latents=noise,
        output_type="latent",
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        **{name: value.float() for name, value in text.items()},
    ).images
    return [engine._decode(one) for one in latents]


def errors_of_bundled() -> tuple[float, float]:
    """PSNR against fp32 of the bundled model's picture: by the fast engine, and by diffusers in fp16."""
    fast, plain = FastEngine.load(BUNDLED), SdxlEngine.load(BUNDLED)
    asked = plan(edge=plain.native_size)
    pictures = [engine.paint(asked, None, lambda _done, _total: None) for engine in (fast, plain)]
    with torch.inference_mode():
        exact = in_fp32(BUNDLED, plain._text.encode(asked.prompt, asked.negative_prompt))
    ours, theirs = (psnr(some, exact) for some in pictures)
    return ours, theirs


def psnr(images: Any, expected: Any) -> float:
    pixels, wanted = (np.stack([np.asarray(image, dtype=np.float64) for image in some]) for some in (images, expected))
    return float(10 * np.log10(255**2 / max(((pixels - wanted) ** 2).mean(), 1e-9)))


def figures(ours: Measured, eager: Measured, as_graph: Measured) -> list[dict[str, Any]]:
    """Bars and aims: the project's own, for one H100."""
    rows: list[tuple[str, str, str, Measured, str | None, float | None]] = [
        ("batch 1, an image", "s", "batch 1", eager, EAGER, 0.72),
        ("batch 3, an image", "s", "batch 3", eager, EAGER, None),
        ("batch 6, an image", "s", "batch 6", eager, EAGER, 0.66),
        ("UNet step, 2 rows", "ms", "step 2", as_graph, AS_GRAPH, 27),
        ("UNet step, 12 rows", "ms", "step 12", {}, None, None),
        ("VAE decode", "ms", "decode", as_graph, AS_GRAPH, 29),
        ("batch 1, an image, with previews", "s", "previews", {"previews": ours["batch 1"]}, "without", None),
        ("exact copy", "s", "exact copy", {}, None, 0.10),
        ("modify at strength 0.5", "s", "modify 0.5", {}, None, None),
        *((f"peak memory reserved, batch {batch}", "GB", f"batch {batch}, reserved", eager, EAGER, 10.0) for batch in (1, 3, 6)),
        ("load", "s", "load", {}, None, None),
        ("capture of a step, kernels compiled", "s", "capture", {}, None, None),
        ("PSNR against fp32", "dB", "psnr", eager, EAGER + ", fp16", 45),
        ("PSNR against fp32, bundled model", "dB", "psnr, bundled", eager, EAGER + ", fp16", 45),
    ]
    return [
        {"name": name, "unit": unit, "ours": round(ours[key], 3), "peer": round(peer[key], 3) if key in peer else None}
        | {"peer_name": peer_name if key in peer else None, "bar": bar, "better": "higher" if unit == "dB" else "lower"}
        for name, unit, key, peer, peer_name, bar in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # for the fp32 that all is held against
    ours, fast = measure_ours(options.checkpoint)
    fresh()
    eager, as_graph, plain, text = measure_peers(options.checkpoint)
    fresh()
    exact = in_fp32(options.checkpoint, text)
    ours["psnr"], eager["psnr"] = psnr(fast, exact), psnr(plain, exact)
    fresh()
    ours["psnr, bundled"], eager["psnr, bundled"] = errors_of_bundled()
    packages = ["torch", "diffusers", "triton"]
    write_results("gpu", figures(ours, eager, as_graph), packages=packages, gpu=torch.cuda.get_device_name(), folder=options.out)


if __name__ == "__main__":
    main()
