"""The one place on the GPU: jobs paint there one after the other, and whoever watches can see that painting goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from ourvidz_sdxl.errors import GpuUnusable, Released
from ourvidz_sdxl.queue import Lease

LOOK_SECONDS = 0.1  # how long a job that waits for its turn may overlook that it was cancelled


class Gpu:
    """`steps` counts every sign of life while a job paints: its begin, each denoising step, its end.

    `on_turn` is called whenever another job, or none, is on the GPU: should the process die, the right one is to be charged.
    """

    def __init__(self, on_turn: Callable[[], None]) -> None:
        self._on_turn = on_turn
        self._free = threading.Lock()
        self._usable = True
        self.painting: UUID | None = None
        self.steps = 0

    @contextmanager
    def turn(self, lease: Lease) -> Iterator[None]:
        """Waits for the GPU and holds it. Raises what `lease.check` raises, and Released once the GPU is unusable."""
        while not self._free.acquire(timeout=LOOK_SECONDS):
            lease.check()
        try:
            if not self._usable:
                raise Released("the GPU is unusable")
            lease.check()
            self._pass_to(lease.job_id)
            yield
        except GpuUnusable:
            self._usable = False
            raise
        finally:
            self._pass_to(None)
            self._free.release()

    def _pass_to(self, job_id: UUID | None) -> None:
        self.painting = job_id
        self.step()
        self._on_turn()

    def step(self) -> None:
        self.steps += 1
