"""The one place on the GPU: jobs paint there one after the other, and whoever watches can see that painting goes on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog

from ourvidz_sdxl.errors import GpuUnusable, ModelInvalid, OutOfMemory, Released
from ourvidz_sdxl.metrics import GPU_BUSY, Stage
from ourvidz_sdxl.queue import Lease
from ourvidz_sdxl.stages import stage

log = structlog.get_logger()

MAX_FAULTS = 3  # different jobs in a row that failed by what may be the worker's own fault
LOOK_SECONDS = 0.1  # how long a job that waits for its turn may overlook that it was cancelled


class Gpu:
    """`steps` counts every sign of life while a job paints: its begin, each denoising step, its end. Once
    `unusable_because` has a reason it keeps it, and nothing is painted any more.

    `on_turn` is called with the job that is on the GPU now, before it paints: should the process die, the right one is to be
    charged. When a turn is over it is called with None, and the next job does not wait for that.
    `on_nearly_free` is called once a turn, when by the pace of its steps no more than `nearly_seconds` of it are left.
    """

    def __init__(
        self,
        on_turn: Callable[[UUID | None], None],
        on_nearly_free: Callable[[], None] = lambda: None,
        nearly_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_turn = on_turn
        self._on_nearly_free = on_nearly_free
        self._nearly_seconds = nearly_seconds
        self._clock = clock
        self._free = threading.Lock()
        self.unusable_because: str | None = None
        self._has_completed = False  # a job, in this process
        self._is_suspect = False  # became unusable by suspect errors
        self._faults: dict[UUID, str] = {}  # error code by job, since the last completed one
        self.painting: UUID | None = None
        self.nearly_free = True  # or free
        self.steps = 0
        self._counted_at = self._first_step_at = 0.0

    @property
    def usable(self) -> bool:
        return self.unusable_because is None

    @property
    def faulty(self) -> bool:
        """True once suspect errors made the GPU unusable before this process had completed any job."""
        return self._is_suspect and not self._has_completed

    def passes_proof(self, job_id: UUID, prove: Callable[[], None]) -> bool:
        """Calls `prove` (`Engine.prove`) in a turn of its own, after a suspect error of the job; False if the engine fails it.

        The GPU is unusable then. The job counts as the one that paints, so that a proof which hangs or kills the process is
        noticed like a painting that does. Out of memory is no failure: another job may hold the memory.
        """
        with self._free:
            self.painting = job_id
            self.step()
            self._on_turn(job_id)
            try:
                prove()
            except OutOfMemory:
                log.warning("not_proven", reason="out of memory")
            except GpuUnusable as error:
                self._become_unusable(f"{error.code}: {error}")
            except Exception as error:  # noqa: BLE001  an engine that fails a known painting for any reason is no engine
                self._become_faulty(str(error) if isinstance(error, ModelInvalid) else f"{type(error).__name__}: {error}")
            finally:
                self.painting = None
                self.step()
        self._on_turn(None)
        return self.usable

    def record_completed(self) -> None:
        """Ends a row of suspect errors: this worker can paint."""
        self._has_completed = True
        self._faults.clear()

    def record_fault(self, job_id: UUID, code: str) -> None:
        """Counts a suspect error (`WorkerError.suspect`); the GPU is unusable after MAX_FAULTS different jobs in a row.

        The same job counts once, so that a single one which nobody can paint stops no worker.
        """
        self._faults[job_id] = code
        if len(self._faults) >= MAX_FAULTS:
            codes = ", ".join(sorted(set(self._faults.values())))
            self._become_faulty(f"{MAX_FAULTS} jobs in a row failed here ({codes}) and none was completed")

    def _become_faulty(self, reason: str) -> None:
        self._is_suspect = True
        self._become_unusable(f"worker_faulty: {reason}")

    def _become_unusable(self, reason: str) -> None:
        self.unusable_because = self.unusable_because or reason

    @contextmanager
    def turn(self, lease: Lease) -> Iterator[None]:
        """Waits for the GPU and holds it; `lease.painted` afterwards. Raises what `lease.check` raises, and Released once the GPU
        is unusable.
        """
        with stage(Stage.GPU_WAIT):
            while not self._free.acquire(timeout=LOOK_SECONDS):
                lease.check()
        self._counted_at = self._clock()
        try:
            if not self.usable:
                raise Released("the GPU is unusable")
            lease.check()
            self.nearly_free = math.isinf(self._nearly_seconds)
            self.painting = lease.job_id
            self.step()
            self._on_turn(lease.job_id)
            yield
        except GpuUnusable as error:
            self._become_unusable(f"{error.code}: {error}")
            raise
        finally:
            self.painting = None
            self.nearly_free = True
            self.step()
            lease.painted = True
            self._free.release()
            self._on_turn(None)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """For what is done on the GPU outside of a turn.

        A fault that comes to light here is, by all odds, that of the job which paints; it will meet it too, and be charged. So this
        raises Released then.
        """
        try:
            yield
        except GpuUnusable as error:
            self._become_unusable(f"{error.code}: {error}")
            raise Released(f"the GPU became unusable: {error}") from None

    def step(self, done: int = 0, total: int = 0) -> None:
        """`done` of `total` denoising steps. The first one tells nothing of their pace: a kernel may have been compiled in it."""
        self.steps += 1
        now = self._clock()
        GPU_BUSY.inc(now - self._counted_at)
        self._counted_at = now
        if done == 1:
            self._first_step_at = now
        elif done > 1 and not self.nearly_free:
            pace = (now - self._first_step_at) / (done - 1)
            if pace * (total - done) <= self._nearly_seconds:
                self.nearly_free = True
                self._on_nearly_free()
