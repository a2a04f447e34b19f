"""The one place on the GPU: jobs paint there one after the other, and whoever watches can see that painting goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from ourvidz_sdxl.errors import GpuUnusable, Released
from ourvidz_sdxl.queue import Lease

LOOK_SECONDS = 0.1  # how long a job that waits for its turn may overlook that it was cancelled


class Gpu:
    """`steps` counts every sign of life while a job paints: its begin, each denoising step, its end."""

    def __init__(self) -> None:
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
            self.painting = lease.job_id
            self.step()
            yield
        except GpuUnusable:
            self._usable = False
            raise
        finally:
            self.painting = None
            self.step()
            self._free.release()

    def step(self) -> None:
        self.steps += 1
