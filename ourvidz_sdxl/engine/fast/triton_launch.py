"""How Triton kernels are launched; and how many are compiled at a time before any has to run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import triton

_only_compile: ContextVar[bool] = ContextVar("only_compile", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """`kernel[grid](...)`; within `compiled_ahead` only its compilation."""
    if _only_compile.get():
        kernel.warmup(*arguments, grid=grid, **constants)
    else:
        kernel[grid](*arguments, **constants)


@contextmanager
def compiled_ahead() -> Iterator[None]:
    """What is launched inside is compiled, side by side, by the end, and not run: results are whatever was in memory.

    A kernel takes some 0.3 s, and a step of SDXL has thirty: one after the other, they took 15 s (one H100).
    """
    with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool):
        token = _only_compile.set(True)
        try:
            yield
        finally:
            _only_compile.reset(token)
