"""The fast engine on a real GPU: cancelled in the middle, from kept weights, in FP8, guided in an interval, and with two UNets.

Needs CUDA, and a full-size model in CHECKPOINT.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from ourvidz_sdxl.engine import FastOptions
from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.fast.graphs import StepShape
from tests.gpu.test_memory import PLAN

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

ONE = replace(PLAN, seeds=(1,), steps=25)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> FastEngine:
    return FastEngine.load(checkpoint, options=FastOptions(keep_weights=True))


def pixels(engine: FastEngine, **changes: object) -> np.ndarray:
    return np.asarray(engine.paint(replace(ONE, **changes), None, lambda _done, _total: None)[0], dtype=np.float64)  # type: ignore[arg-type]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(((one - other) ** 2).mean(), 1e-9)))


def test_a_cancelled_painting_ends_a_step_later_and_the_next_is_as_ever(
    engine: FastEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, _total: int) -> None:
        if done == 5:
            raise Cancelled

    before = pixels(engine)
    step = engine._graphs.step(StepShape(images=1, height=128, width=128, tokens=77, guided=True, euler=True))
    replayed, replay = count(), step.replay
    monkeypatch.setattr(step, "replay", lambda: next(replayed) is not None and replay())
    with pytest.raises(Cancelled):
        engine.paint(ONE, None, cancel)
    assert next(replayed) == 6, "one was waiting on the GPU"
    assert (pixels(engine) == before).all()


def test_kept_weights_paint_the_same_to_the_bit(engine: FastEngine, checkpoint: Path) -> None:
    for thread in threading.enumerate():
        if thread.name == "keep":
            thread.join()
    assert [*checkpoint.parent.glob("*.runtime")]
    assert (pixels(FastEngine.load(checkpoint, options=FastOptions(keep_weights=True))) == pixels(engine)).all()


def test_fp8_paints_nearly_the_same_with_less_memory(engine: FastEngine, checkpoint: Path) -> None:
    plain = pixels(engine)
    before = torch.cuda.memory_allocated()
    fp8 = FastEngine.load(checkpoint, options=FastOptions(fp8=True))
    assert torch.cuda.memory_allocated() - before < 6e9
    assert psnr(pixels(fp8), plain) > 30  # 36.8 on an H100, with random weights


def test_an_interval_of_guidance_costs_less_and_has_the_same_first_guided_steps(engine: FastEngine) -> None:
    whole = pixels(engine)
    assert (pixels(engine, guidance_interval=(0.0, 1.0)) == whole).all()
    assert psnr(pixels(engine, guidance_interval=(0.0, 0.96)), whole) > psnr(pixels(engine, guidance_interval=(0.5, 1.0)), whole)


def test_encoding_ahead_on_another_thread_does_not_disturb_a_painting(engine: FastEngine) -> None:
    alone, stop = pixels(engine), threading.Event()

    def encode() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            engine.encode_prompts(replace(ONE, prompt=f"cat number {number}"))

    thread = threading.Thread(target=encode)
    thread.start()
    try:
        assert (pixels(engine) == alone).all()
        assert (pixels(engine, width=768) == pixels(engine, width=768)).all(), "captured beside it"
    finally:
        stop.set()
        thread.join()
