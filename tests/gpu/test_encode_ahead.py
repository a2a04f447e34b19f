"""Prompts encoded on other threads while a GPU paints, and while it captures: each picture is what it would be alone.

Needs CUDA.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.engine.text import CACHED_PROMPTS
from ourvidz_sdxl.plan import Plan
from tests.integration.test_engine import MODEL, PLAN, paint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# one shape after the other, so that the fast engine captures; prompts long, weighted and plain
PLANS = [
    replace(PLAN, width=edge, height=edge, prompt=prompt, seeds=seeds)
    for edge, seeds in ((128, (1,)), (192, (1, 2, 3)), (256, (1,)))
    for prompt in ("a red circle", "a (green:1.4) star", "a blue square, " * 30)
]


@contextmanager
def others_encoding(engine: SdxlEngine) -> Iterator[list[int]]:
    """Two threads, which between them push every prompt out of the cache over and over. Yields how many each encoded."""
    over, done = threading.Event(), [0, 0]

    def encode(thread: int) -> None:
        for number in count():
            if over.is_set():
                return
            engine.encode_prompts(replace(PLAN, prompt=f"prompt {number} of thread {thread}"))
            done[thread] = number + 1

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("kind", [SdxlEngine, FastEngine])
def test_what_others_encode_meanwhile_changes_no_picture(kind: type[SdxlEngine]) -> None:
    def ahead(engine: SdxlEngine, plan: Plan) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        engine.encode_prompts(plan)
        return np.stack(paint(engine, plan)).astype(int)

    alone = kind.load(MODEL)
    expected = [ahead(alone, plan) for plan in PLANS]
    engine = kind.load(MODEL)
    with others_encoding(engine) as done:
        while min(done) < 2 * CACHED_PROMPTS:
            for plan, wanted in zip(PLANS, expected, strict=True):
                assert np.abs(ahead(engine, plan) - wanted).mean() < 1
