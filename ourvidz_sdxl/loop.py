"""The worker at run time: claims, does, keeps house, drains.

Threads: this loop claims; one thread a job runs `process`, with one for its heartbeat; one keeps house; `wakeup`, `progress` and
`lifeline` have their own.

Lanes: up to MAX_CONCURRENT_JOBS jobs are prepared, wait for the GPU or paint, while others are delivered. The next one is claimed
PREFETCH_SECONDS before a painting ends, so that it is ready then, and does not wait here while another worker is idle.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog

from ourvidz_sdxl import __version__, tracing
from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.engine import Engine
from ourvidz_sdxl.enhance import Enhancer
from ourvidz_sdxl.errors import (
    JobCancelled,
    OutOfMemory,
    Released,
    SupabaseRefused,
    SupabaseUnavailable,
    UploadFailed,
)
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.gpu import Gpu
from ourvidz_sdxl.lifeline import Lifeline, Sign, pipe_from_environment
from ourvidz_sdxl.metrics import IMAGES, INFO, JOBS, LANES, READY, REALTIME_CONNECTED, Wake
from ourvidz_sdxl.process import Tools, process
from ourvidz_sdxl.progress import Progress
from ourvidz_sdxl.queue import Claimed, Lease, Outcome, Queue
from ourvidz_sdxl.safety import ImageCheck
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.storage import Storage
from ourvidz_sdxl.wakeup import Wakeup

log = structlog.get_logger()

LAST_WORD_SECONDS = 1.0  # for what is still to be said after the grace is over
# While so many jobs are being delivered nothing new is claimed. At 0.45 s a painting (15 steps on an H100) a delivery may then take
# 2.7 s before the GPU has to wait for it. Each holds its images, up to 36 MB, and up to 6 connections.
MAX_DELIVERIES = 6
# A job that is not on the GPU by then leaves it to another; to fetch a reference and encode a prompt takes far less.
SLOW_PREPARATION_SECONDS = 1.0


class Worker:
    """One engine at work. `run` returns the exit code after `stop` (which signals call) or IDLE_EXIT_MINUTES without a job."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        enhancer: Enhancer | None,
        image_check: ImageCheck | None,
        more_facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`more_facts` are told to `public.workers` with the rest."""
        client = connect(settings)
        self._settings = settings
        self._queue = Queue(client, settings)
        self._progress = Progress(settings)
        self._wakeup = Wakeup(settings, self._on_cancel)
        self._storage = Storage(client, patience_seconds=settings.lease_seconds / 2)
        self._gpu = Gpu(self._on_turn, lambda: self._wakeup.wake(Wake.LANE), settings.prefetch_seconds)
        self._tools = Tools(
            engine=engine,
            gpu=self._gpu,
            queue=self._queue,
            storage=self._storage,
            progress=self._progress,
            settings=settings,
            enhancer=enhancer,
            image_check=image_check,
        )
        what_paints = {"engine": engine.choice.name, "engine_note": engine.choice.note}
        self._facts = {"gpu": engine.gpu, "vram_mb": engine.vram_mb, "model": engine.model, **what_paints, **(more_facts or {})}
        self._lifeline = Lifeline(self._sign, self.stop, pipe_from_environment())
        self._leases: dict[UUID, Lease] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._over = threading.Event()
        self.taken = 0  # jobs, those included that were given back
        self._warm = False
        self._had_room = True  # when jobs were asked for last
        self._beat_at = self._busy_at = time.monotonic()
        self._show()

    def run(self) -> ExitCode:
        with self._progress, self._wakeup, self._lifeline:
            self._lifeline.tell()
            house = threading.Thread(target=self._keep_house, name="house", daemon=True)
            house.start()
            log.info("worker_ready", worker_id=self._settings.worker_id, target_worker=self._settings.target_worker, **self._facts)
            while not self._stopping.is_set():
                self._beat_at = time.monotonic()
                at_the_latest = self._claim_what_fits()
                if not self._warmed_up():
                    continue
                still_idle = self._idle_seconds_left()
                if still_idle <= 0:
                    log.info("worker_idle", minutes=self._settings.idle_exit_minutes)
                    break
                self._wakeup.wait(min(still_idle, math.inf if at_the_latest is None else at_the_latest))
            self._stopping.set()
            self._drain()
        self._over.set()
        deadline = time.monotonic() + LAST_WORD_SECONDS
        house.join(LAST_WORD_SECONDS / 2)  # so that its word is not the last
        if reason := self._gpu.unusable_because:
            report(self._queue, "failed", self._facts | {"error": reason}, patience_seconds=LAST_WORD_SECONDS)
            return ExitCode.BROKEN
        spans = tracing.send_the_rest()
        report(self._queue, "stopped", self._facts, patience_seconds=max(0.1, deadline - time.monotonic()))
        spans.join(max(0.0, deadline - time.monotonic()))
        return ExitCode.DRAINED

    @property
    def unusable_because(self) -> str | None:
        """The reason for which `run` returned ExitCode.BROKEN."""
        return self._gpu.unusable_because

    def stop(self) -> None:
        self._stopping.set()
        self._wakeup.wake(Wake.STOP)

    def why_stuck(self) -> list[str]:
        """For /health: the loop comes round with the timer at the latest, after a claim or a warming up that took its time."""
        timer = max(self._settings.poll_interval_seconds, self._settings.poll_interval_connected_seconds)
        still = time.monotonic() - self._beat_at
        patience = timer + self._settings.step_timeout_seconds
        return [f"the loop has stood still for {still:.0f} s"] if still > patience else []

    def why_not_ready(self) -> list[str]:
        """For /ready. Supabase is asked with every heartbeat at least; two without an answer are no accident."""
        silent = self._queue.silent_seconds
        reasons = {
            "this worker is draining": self._stopping.is_set(),
            f"this worker cannot paint any more: {self._gpu.unusable_because}": not self._gpu.usable,
            f"Supabase has not answered for {silent:.0f} s": silent > 2 * self._settings.heartbeat_seconds,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def _show(self) -> None:
        """What the figures say of this moment is looked up when somebody asks."""
        lanes = {
            "prepare": lambda: sum(not lease.painted for lease in self._held()) - (self._gpu.painting is not None),
            "paint": lambda: int(self._gpu.painting is not None),
            "deliver": lambda: sum(lease.painted for lease in self._held()),
        }
        for lane, jobs in lanes.items():
            LANES.labels(lane).set_function(jobs)
        REALTIME_CONNECTED.set_function(lambda: self._wakeup.connected)
        READY.set_function(lambda: not self.why_not_ready())
        engine, settings = self._tools.engine, self._settings
        for job_type in settings.job_types:  # what did not happen yet is 0 and not absent
            JOBS.labels(job_type, Outcome.COMPLETED, "")
            IMAGES.labels(job_type)
        of_engine = (engine.model, engine.model_hash, engine.gpu or "", engine.choice.name)
        INFO.labels(settings.worker_id, __version__, settings.target_worker, *of_engine).set(1)

    def _claim_what_fits(self) -> float | None:
        """Claims until the lanes are full or the queue is empty; returns when to ask again at the latest, in seconds."""
        while not self._stopping.is_set():
            room_in_seconds = self._room_in_seconds()
            self._had_room = room_in_seconds == 0
            if not self._had_room:
                return room_in_seconds
            try:
                claimed, next_in_seconds = self._queue.claim()
            except (SupabaseUnavailable, SupabaseRefused) as error:
                log.warning("claim_failed", reason=str(error))
                return self._settings.poll_interval_seconds
            if claimed is None:
                return next_in_seconds
            self.taken += 1
            with self._lock:
                self._leases[claimed.lease.job_id] = claimed.lease
            self._lifeline.tell()
            threading.Thread(target=self._do, args=(claimed,), name=f"job-{claimed.lease.job_id}", daemon=True).start()
        return None

    def _warmed_up(self) -> bool:
        """Without jobs, has the engine prepare one more of the usual kinds; whether nothing of that is left to do now."""
        if self._warm or self._held() or not self._had_room:  # what has just ended may have kept jobs waiting
            return True
        try:
            with self._gpu.beside():
                self._warm = not self._tools.engine.warm_up()
        except Released:
            self.stop()
        except OutOfMemory as error:
            log.warning("not_warmed_up", reason=str(error))
            self._warm = True
        return self._warm

    def _room_in_seconds(self) -> float:
        """When another job may be claimed, as far as time alone decides: 0 for now, infinity until something happens."""
        held = self._held()
        before_gpu = [lease for lease in held if not lease.painted]
        if len(before_gpu) >= self._settings.max_concurrent_jobs or len(held) - len(before_gpu) >= MAX_DELIVERIES:
            return math.inf
        if not (self._gpu.usable and self._gpu.nearly_free):
            return math.inf
        preparing = [lease.claimed_at for lease in before_gpu if lease.job_id != self._gpu.painting]
        if not preparing or math.isinf(self._settings.prefetch_seconds):
            return 0.0
        return max(0.0, max(preparing) + SLOW_PREPARATION_SECONDS - time.monotonic())

    def _on_turn(self, job_id: UUID | None) -> None:
        self._lifeline.tell()
        if job_id is None:
            self._wakeup.wake(Wake.LANE)  # one job less before the GPU

    def _do(self, claimed: Claimed) -> None:
        try:
            process(claimed, self._tools)
        finally:
            if (reason := self._gpu.unusable_because) and not self._stopping.is_set():
                log.error("worker_stopped_claiming", reason=reason)
                self.stop()
            with self._lock:
                self._leases.pop(claimed.lease.job_id, None)
                self._busy_at = time.monotonic()
            self._lifeline.tell()
            self._wakeup.wake(Wake.LANE)

    def _on_cancel(self, job_id: UUID) -> None:
        with self._lock:
            lease = self._leases.get(job_id)
        if lease:
            lease.end(JobCancelled)

    def _idle_seconds(self) -> float:
        """How long nothing has been held here."""
        with self._lock:
            return 0.0 if self._leases else time.monotonic() - self._busy_at

    def _idle_seconds_left(self) -> float:
        """Until nothing has been to do for as long as the operator pays for."""
        minutes = self._settings.idle_exit_minutes
        return 60 * minutes - self._idle_seconds() if minutes else math.inf

    def _held(self) -> list[Lease]:
        with self._lock:
            return list(self._leases.values())

    def _sign(self) -> Sign:
        painting = self._gpu.painting
        return Sign(
            held={str(lease.job_id): str(lease.token) for lease in self._held()},
            painting=str(painting) if painting else None,
            steps=self._gpu.steps,
            facts=self._facts,
            error=self._gpu.unusable_because,
            faulty=self._gpu.faulty,
        )

    def _keep_house(self) -> None:
        """Says that this worker lives, deletes what was kept long enough, and removes the objects that no row shows any more."""
        while not self._over.is_set():
            state = "draining" if self._stopping.is_set() else "ready"
            report(self._queue, state, self._facts | {"idle_seconds": self._idle_seconds()})
            try:
                if jobs := self._queue.retire_jobs():
                    log.info("old_jobs_deleted", jobs=jobs)
                for bucket, paths in self._queue.sweep_orphans().items():
                    self._storage.remove(bucket, paths)
                    log.info("objects_removed", bucket=bucket, objects=len(paths))
            except (SupabaseUnavailable, SupabaseRefused, UploadFailed) as error:
                log.warning("not_removed", reason=str(error))
            self._over.wait(self._settings.heartbeat_seconds)

    def _drain(self) -> None:
        """Lets the held jobs end within the grace; gives the rest back, uncharged."""
        grace = self._settings.shutdown_grace_seconds
        log.info("worker_draining", jobs=len(self._held()), grace_seconds=grace)
        # a quarter of the grace is kept for giving back, which waits for the denoising step that runs
        if not self._wait_until_idle(grace * 0.75):
            for lease in self._held():
                lease.end(Released)
            self._wait_until_idle(grace * 0.25)
        left = self._held()  # their threads are stuck in a step or an upload, and end with the process
        for lease in left:
            try:
                self._queue.finish(lease, Outcome.RELEASED, patience_seconds=LAST_WORD_SECONDS)
            except (SupabaseUnavailable, SupabaseRefused) as error:
                log.warning("not_given_back", job_id=str(lease.job_id), reason=str(error))
        log.info("worker_drained", given_back=len(left))

    def _wait_until_idle(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._held():
            self._beat_at = time.monotonic()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            self._wakeup.wait(remaining)
        return True


def report(queue: Queue, state: str, facts: dict[str, Any], *, patience_seconds: float | None = None) -> None:
    try:
        queue.report_worker(state, facts, patience_seconds=patience_seconds)
    except (SupabaseUnavailable, SupabaseRefused) as error:
        log.warning("report_failed", reason=str(error))
