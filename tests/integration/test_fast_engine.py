"""The fast engine paints what the plain one paints: every scheduler, with and without a reference, alone and in batches."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.accelerations import random_lora
from ourvidz_sdxl.engine import FastOptions, load_engine
from ourvidz_sdxl.engine.fast.engine import FastEngine, why_not_fast
from ourvidz_sdxl.engine.load import load_components
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.job import Job, Scheduler
from ourvidz_sdxl.plan import Plan, make_plan

EDGE = 64  # pixels, where it does not matter what is in the picture: half the model's own, and a third of the time
BUNDLED = Path(__file__).resolve().parents[2] / "models" / "tiny-sdxl"
USER = "22222222-2222-4222-8222-222222222222"
REFERENCE: dict[str, Any] = {"reference_image_path": f"{USER}/x.png", "reference_strength": 0.5}
JOBS: dict[str, dict[str, Any]] = {
    "batch of 3": {"batch_size": 3},
    "no guidance": {"guidance_scale": 1.0},
    "long prompt": {"prompt": "a red circle " * 60},
    "modify": {**REFERENCE, "reference_strength": 0.4},
    "copy": {**REFERENCE, "exact_copy_mode": True},
    **{scheduler.value: {"scheduler": scheduler.value} for scheduler in Scheduler},
    **{f"modify, {scheduler.value}": {**REFERENCE, "scheduler": scheduler.value, "batch_size": 3} for scheduler in Scheduler},
}


@pytest.fixture(scope="module")
def engines() -> tuple[FastEngine, SdxlEngine]:
    return FastEngine.load(BUNDLED), SdxlEngine.load(BUNDLED)


def reference(edge: int) -> Image.Image:
    return Image.effect_mandelbrot((edge, edge), (-2, -1.5, 1, 1.5), 100).convert("RGB")


def plan(edge: int, **columns: Any) -> Plan:
    row = {"id": uuid4(), "user_id": USER, "claims": 1, "job_type": "sdxl_image_high", "steps": 6, "seed": 1}
    size = (edge, edge) if "reference_image_path" in columns else None
    return make_plan(Job.from_row({"prompt": "a red circle"} | row | columns), native_size=edge, random_seed=0, reference_size=size)


@pytest.mark.parametrize("columns", JOBS.values(), ids=JOBS)
def test_the_same_images_and_the_same_progress(engines: tuple[FastEngine, SdxlEngine], columns: dict[str, Any]) -> None:
    asked = plan(EDGE, **columns)
    painted: list[Any] = []
    progress: list[list[tuple[int, int]]] = []
    for engine in engines:
        progress.append([])
        given = reference(EDGE) if columns.keys() >= REFERENCE.keys() else None
        images = engine.paint(asked, given, lambda done, total: progress[-1].append((done, total)))
        painted.append(np.stack([np.asarray(image, dtype=int) for image in images]))
    assert np.abs(painted[0] - painted[1]).max() <= 1
    assert progress[0] == progress[1]


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.0, 0.01)], ids=str)
@pytest.mark.parametrize("scheduler", [None, "dpmpp_2m"])
@pytest.mark.parametrize("changes", [{}, {**REFERENCE, "reference_strength": 0.3}], ids=["text", "reference"])
def test_guided_in_an_interval_they_are_the_same_too(
    engines: tuple[FastEngine, SdxlEngine], interval: tuple[float, float], scheduler: str | None, changes: dict[str, Any]
) -> None:
    asked = replace(plan(EDGE, scheduler=scheduler, **changes), guidance_interval=interval)
    given = reference(EDGE) if changes else None
    fast, plain = (np.asarray(engine.paint(asked, given, lambda *_: None)[0], dtype=int) for engine in engines)
    assert np.abs(fast - plain).max() <= 1


def test_with_a_few_step_lora_both_paint_the_same_with_either_unet_from_kept_weights_too(tmp_path: Path) -> None:
    lora = random_lora(BUNDLED, tmp_path / "few.safetensors")
    model = Path(shutil.copytree(BUNDLED, tmp_path / "model"))
    keep = FastOptions(keep_weights=True)
    engines = [FastEngine.load(model, lora, keep), SdxlEngine.load(model, lora)]
    while not [*tmp_path.glob("*.runtime")]:
        time.sleep(0.01)
    engines.append(FastEngine.load(model, lora, keep))
    ordinary = plan(EDGE, steps=2)
    few = replace(ordinary, guidance_scale=1.0, scheduler=Scheduler.EULER, few_step_lora=lora.stem)
    for asked in (few, ordinary, few):
        first, *others = (np.asarray(engine.paint(asked, None, lambda *_: None)[0], dtype=int) for engine in engines)
        assert all(np.abs(first - other).max() <= 1 for other in others)
    with pytest.raises(ValueError, match="without a few-step LoRA"):
        FastEngine.load(BUNDLED).paint(few, None, lambda *_: None)


@pytest.mark.parametrize("scheduler", [None, *Scheduler])
def test_strength_0_paints_bit_for_bit_what_no_reference_gives(
    engines: tuple[FastEngine, SdxlEngine], scheduler: Scheduler | None
) -> None:
    columns = {"scheduler": scheduler, "batch_size": 3, "steps": 3, "negative_prompt": "blue"}
    for engine in engines:
        with_reference = engine.paint(
            plan(EDGE, **columns, **(REFERENCE | {"reference_strength": 0.0})), reference(EDGE), lambda *_: None
        )
        assert with_reference == engine.paint(plan(EDGE, **columns), None, lambda *_: None)


@pytest.mark.parametrize("strength", [0.8, 0.9, 0.71, 0.29])
@pytest.mark.parametrize("steps", [15, 25])
def test_both_paint_as_many_steps_as_the_plan_says(engines: tuple[FastEngine, SdxlEngine], steps: int, strength: float) -> None:
    asked = plan(EDGE, steps=steps, **(REFERENCE | {"reference_strength": strength}))
    told: list[tuple[int, int]] = []
    for engine in engines:
        engine.paint(asked, reference(EDGE), lambda done, total: told.append((done, total)))
    assert told == 2 * [(done, asked.painted_steps) for done in range(1, asked.painted_steps + 1)]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("scheduler", [None, *Scheduler])
def test_few_steps_are_the_same_in_both_and_paint_something(
    engines: tuple[FastEngine, SdxlEngine], scheduler: Scheduler | None, steps: int
) -> None:
    asked = plan(engines[0].native_size, scheduler=scheduler, steps=steps)
    fast, plain = (np.asarray(engine.paint(asked, None, lambda *_: None)[0], dtype=int) for engine in engines)
    assert np.abs(fast - plain).max() <= 1
    red, green, blue = plain.mean((0, 1))
    assert red > max(green, blue) + 50, "of the red circle that was asked for; noise that is left as it is has no colour"


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.fixture(scope="module")
def zero_snr_engines() -> tuple[FastEngine, SdxlEngine]:
    """The bundled model, taken for a v-prediction model with zero terminal SNR: its pictures mean nothing."""
    device = torch.device("cpu")
    fast, plain = (
        replace(parts, scheduler_config={**parts.scheduler_config, **ZERO_SNR})
        for parts in (load_components(BUNDLED, device=device), load_components(BUNDLED, device=device))
    )
    return FastEngine(fast, device), SdxlEngine(plain, device)


@pytest.mark.parametrize("changes", [{}, {**REFERENCE, "reference_strength": 0.4}], ids=["text", "reference"])
@pytest.mark.parametrize("scheduler", [None, *Scheduler])
def test_zero_terminal_snr_gives_the_same_images_too(
    zero_snr_engines: tuple[FastEngine, SdxlEngine], scheduler: Scheduler | None, changes: dict[str, Any]
) -> None:
    asked = plan(EDGE, scheduler=scheduler, **changes)
    given = reference(EDGE) if changes else None
    fast, plain = (np.asarray(engine.paint(asked, given, lambda *_: None)[0], dtype=int) for engine in zero_snr_engines)
    assert np.abs(fast - plain).max() <= 2
    assert fast.std() > 1


def test_what_the_callback_raises_ends_the_painting_and_the_engine_paints_on(engines: tuple[FastEngine, SdxlEngine]) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, _total: int) -> None:
        if done == 2:
            raise Cancelled

    fast = engines[0]
    asked = plan(EDGE)
    before = fast.paint(asked, None, lambda *_: None)
    with pytest.raises(Cancelled):
        fast.paint(asked, None, cancel)
    assert fast.paint(asked, None, lambda *_: None) == before


def test_painted_frugally_it_is_nearly_the_same_and_the_graphs_come_back(engines: tuple[FastEngine, SdxlEngine]) -> None:
    engine, asked = engines[0], plan(engines[0].native_size, batch_size=3)
    whole = engine.paint(asked, None, lambda _done, _total: None)
    frugal = engine.paint(asked, None, lambda _done, _total: None, frugal=True)
    for one, other in zip(whole, frugal, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other)).mean() < 8, "each tile has its own normalisation"
    assert all(one == again for one, again in zip(whole, engine.paint(asked, None, lambda _done, _total: None), strict=True))


def test_without_cuda_it_is_not_chosen_by_itself_but_can_be_asked_for() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    assert why_not_fast(BUNDLED) == "no CUDA"
    assert type(load_engine(BUNDLED)) is SdxlEngine
    assert type(load_engine(BUNDLED, "fast")) is FastEngine
