"""From the start of a worker process to its first claim: signals, hooks, the model; and its exit status at the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from ourvidz_sdxl import __version__, metrics, tracing
from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.doctor import refuse_what_waiting_will_not_mend
from ourvidz_sdxl.download import fetch_model
from ourvidz_sdxl.engine import Engine, FastOptions, load_engine
from ourvidz_sdxl.engine.prediction import ScheduleSettings
from ourvidz_sdxl.enhance import Enhancer, HttpEnhancer
from ourvidz_sdxl.errors import ModelInvalid, ModelMissing, SettingsInvalid, WorkerError
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.loop import Worker, report
from ourvidz_sdxl.probes import Answers, listen, serve
from ourvidz_sdxl.queue import Queue
from ourvidz_sdxl.safety import ImageCheck, load_image_check
from ourvidz_sdxl.settings import Settings

log = structlog.get_logger()


def load_model(settings: Settings, load: Callable[[], Engine]) -> Engine:
    """Fetches it where MODEL_URL says whence, and loads it; once more after a pause if that fails: a volume may still be coming.

    Raises SettingsInvalid at once for a Supabase that no waiting will make usable, ModelMissing (ModelNotDownloaded is one) or
    ModelInvalid the second time, and GpuUnusable or OutOfMemory; `public.workers` then says so too.
    """
    queue = Queue(connect(settings), settings)

    def say_starting() -> None:
        # aside: a Supabase that is slow to answer must not hold up the model
        threading.Thread(target=report, args=(queue, "starting", {}), daemon=True).start()

    def load_in_time() -> Engine:
        started = time.monotonic()
        log.info("model_loading")
        engine = load()
        log.info("model_loaded", model=engine.model, seconds=round(time.monotonic() - started, 2))
        return engine

    retrying = Retrying(
        retry=retry_if_exception_type((ModelMissing, ModelInvalid)),
        wait=wait_fixed(settings.model_retry_seconds),
        stop=stop_after_attempt(2),
        before_sleep=lambda state: log.warning("model_not_loaded", reason=str(state.outcome and state.outcome.exception())),
        reraise=True,
    )
    try:
        refuse_what_waiting_will_not_mend(settings)
        say_starting()
        fetch_model(settings, on_progress=say_starting)
        return retrying(load_in_time)
    except WorkerError as error:
        report(queue, "failed", {"error": f"{error.code}: {error}"})
        raise


def run_worker(settings: Settings, load: Callable[[], Engine]) -> ExitCode:
    """Loads the model once, then works until SIGTERM or SIGINT. A second signal ends the process at once.

    Raises SettingsInvalid, ModelMissing or ModelInvalid, which only the operator can mend.

    Signals come to a thread through a socket: what a handler does runs inside whatever lock the main thread happens to hold.
    """
    stop: Callable[[], None] = lambda: os._exit(ExitCode.DRAINED)  # noqa: E731  until something is claimed there is nothing to drain
    arrivals, departures = socket.socketpair()
    departures.setblocking(False)
    signal.set_wakeup_fd(departures.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)

    def wait_for_signals() -> None:
        if arrivals.recv(1):  # nothing comes when `run_worker` has returned and the other end is closed
            stop()
        if second := arrivals.recv(1):
            os._exit(128 + second[0])

    threading.Thread(target=wait_for_signals, name="signals", daemon=True).start()
    enhancer, image_check = set_up(settings)
    worker: Worker | None = None
    answers = Answers(
        health=lambda: (worker.why_stuck() if worker else [], {}),
        ready=lambda: (worker.why_not_ready() if worker else ["the model is being loaded"], {}),
        metrics=metrics.render,
    )
    listener = listen(settings)
    try:
        if listener:
            serve(listener, answers)
        worker = Worker(settings, load_model(settings, load), enhancer, image_check)
        stop = worker.stop
        return worker.run()
    except (SettingsInvalid, ModelMissing, ModelInvalid):
        raise
    except Exception as error:
        log.error("worker_broke", exc_info=error)  # nobody foresaw it; only a new process may do better
        return ExitCode.BROKEN


def set_up(settings: Settings) -> tuple[Enhancer | None, ImageCheck | None]:
    """The operator's hooks, and traces. Before the slow load, so that what is set wrong (SettingsInvalid) is told at once."""
    hooks = make_enhancer(settings), load_image_check(settings.image_check) if settings.image_check else None
    if settings.otel_exporter_otlp_endpoint:
        tracing.set_up_tracing({"service.version": __version__, "service.instance.id": settings.worker_id})
    return hooks


def load_real_engine(settings: Settings) -> Engine:
    """The checkpoint at MODEL_PATH. Raises ModelMissing, ModelInvalid, GpuUnusable or OutOfMemory."""
    options = FastOptions(fp8=settings.fp8, keep_weights=settings.keep_weights, memory_limit_gb=settings.memory_limit_gb)
    return load_engine(
        settings.model_path,
        settings.engine,
        few_step_lora=settings.fast_lora_path,
        options=options,
        schedule=ScheduleSettings(prediction_type=settings.prediction_type, timestep_spacing=settings.timestep_spacing),
    )


def make_enhancer(settings: Settings) -> Enhancer | None:
    """As `ENHANCER` says. Raises SettingsInvalid where its model is not there."""
    if settings.enhancer == "http":
        return HttpEnhancer(
            settings.enhancer_url,
            settings.enhancer_model,
            timeout_seconds=settings.enhancer_timeout_seconds,
            api_key=settings.enhancer_api_key,
        )
    if settings.enhancer == "local" and settings.enhancer_model_path:
        from ourvidz_sdxl.engine.qwen import LocalEnhancer

        return LocalEnhancer(settings.enhancer_model_path, timeout_seconds=settings.enhancer_timeout_seconds)
    return None
