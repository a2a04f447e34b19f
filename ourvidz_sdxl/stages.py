"""What a job is doing, for both who counts (`metrics`) and who follows one job (`tracing`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ourvidz_sdxl import tracing
from ourvidz_sdxl.metrics import STAGE, STEP, Stage


@contextmanager
def stage(which: Stage, **attributes: Any) -> Iterator[None]:
    """Times the block, and makes a span of it. One that ends in an error is traced and not counted."""
    began = time.monotonic()
    with tracing.span(which, **attributes):
        yield
    STAGE.labels(which).observe(time.monotonic() - began)


class Denoising:
    """Times the steps of one painting. What follows the last one is decoding."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._last = clock()
        self._steps = 0

    def step(self) -> None:
        now = self._clock()
        if self._steps:  # the first comes with the prompt, the reference and the graphs
            STEP.observe(now - self._last)
        self._last = now
        self._steps += 1

    def decoded(self) -> None:
        """A copy at full strength has no steps, and decodes nothing."""
        if not self._steps:
            return
        seconds = self._clock() - self._last
        STAGE.labels(Stage.DECODE).observe(seconds)
        tracing.past_span("denoise", seconds=self._last - self._began, ago_seconds=seconds, steps=self._steps)
        tracing.past_span(Stage.DECODE, seconds=seconds)
