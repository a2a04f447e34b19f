"""On RunPod serverless: a request wakes the worker, which drains the queue and answers how much it did.

The request says nothing about any job: jobs are rows, as everywhere. Between requests the model stays loaded. What RunPod's SDK
expects of a handler: https://docs.runpod.io/serverless/workers/handler-functions.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any
from uuid import UUID

import structlog

from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.engine import Engine
from ourvidz_sdxl.enhance import Enhancer
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.loop import Worker, report
from ourvidz_sdxl.queue import Queue
from ourvidz_sdxl.safety import ImageCheck
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.startup import load_model, load_real_engine, set_up

IDLE_SECONDS = 5.0  # without a job, where IDLE_EXIT_MINUTES says nothing else
MOST_SECONDS = 540.0  # RunPod ends a request after 600 s unless its policy says otherwise; then `seconds` in its input must, too

log = structlog.get_logger()


class Drain:
    """The handler. One request at a time, as RunPod sends them unless it is told otherwise."""

    def __init__(self, settings: Settings, engine: Engine, enhancer: Enhancer | None, image_check: ImageCheck | None) -> None:
        idle_minutes = settings.idle_exit_minutes or IDLE_SECONDS / 60
        self._settings = settings.model_copy(update={"idle_exit_minutes": idle_minutes})
        self._hooks = engine, enhancer, image_check
        self._worker: Worker | None = None
        self._told_to_stop = False

    async def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`request["input"]`: {"start_id": a row of worker_starts, "target_worker", "seconds": at most so long}; none is needed.

        Answers {"jobs": number of claimed jobs, "seconds"}, or {"error": "<code>: <reason>"}. Where the GPU is unusable, RunPod is
        asked for another container.
        """
        try:
            facts, most_seconds = self._read(request.get("input") or {})
        except ValueError as error:
            return {"error": f"invalid_request: {error}"}
        self._hear_signals()
        worker = self._worker = Worker(self._settings, *self._hooks, more_facts=facts)
        if self._told_to_stop:
            worker.stop()
        started = time.monotonic()
        timer = threading.Timer(most_seconds, worker.stop)
        timer.daemon = True
        timer.start()
        try:
            # aside: the SDK's loop must go on telling RunPod that this container lives
            ended = await asyncio.to_thread(worker.run)
        except asyncio.CancelledError:
            worker.stop()
            raise
        finally:
            timer.cancel()
        if ended is not ExitCode.DRAINED:
            reason = worker.unusable_because
            report(Queue(connect(self._settings), self._settings), "stopped", facts | {"error": reason})
            return {"error": reason, "refresh_worker": True}
        return {"jobs": worker.taken, "seconds": round(time.monotonic() - started, 1)}

    def _read(self, wish: Mapping[str, Any]) -> tuple[dict[str, str], float]:
        """The facts and the seconds. Raises ValueError with words."""
        start_id, target, seconds = wish.get("start_id"), wish.get("target_worker"), wish.get("seconds", MOST_SECONDS)
        if target not in (None, self._settings.target_worker):
            raise ValueError(f"this worker takes jobs of {self._settings.target_worker}")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise ValueError("seconds must be a positive number")
        try:
            return {} if start_id is None else {"start_id": str(UUID(start_id))}, float(seconds)
        except (ValueError, AttributeError):
            raise ValueError("start_id must be a UUID") from None

    def _hear_signals(self) -> None:
        """SIGTERM drains at once. The SDK's own handler, in place since it started, only waits for the end of the request."""
        before = signal.getsignal(signal.SIGTERM)
        if before == self._on_sigterm:
            return
        self._sdks: Callable[[int, FrameType | None], Any] | None = before if callable(before) else None
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._told_to_stop = True
        if self._worker:
            threading.Thread(target=self._worker.stop, daemon=True).start()  # aside: the main thread may hold any lock just now
        if self._sdks:
            self._sdks(number, frame)


def serve(settings: Settings) -> None:
    """Loads the model, then serves requests until SIGTERM. Raises SettingsInvalid, ModelMissing or ModelInvalid."""
    import runpod  # type: ignore[import-untyped]

    hooks = set_up(settings)
    engine = load_model(settings, lambda: load_real_engine(settings))
    runpod.serverless.start({"handler": Drain(settings, engine, *hooks).handle})
