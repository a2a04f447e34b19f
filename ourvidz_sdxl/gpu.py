"""The one place on the GPU: jobs paint there one after the other, and whoever watches can see that painting goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from ourvidz_sdxl.errors import GpuUnusable, Released
from ourvidz_sdxl.queue import Lease


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
        with self._free:
            if not self._usable:
                raise Released("the GPU is unusable")
            lease.check()
            self.painting = lease.job_id
            self.step()
            try:
                yield
            except GpuUnusable:
                self._usable = False
                raise
            finally:
                self.step()
                self.painting = None

    def step(self) -> None:
        self.steps += 1
