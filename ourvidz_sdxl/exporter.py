"""Exporter of the queue's figures of all targets (`worker.py exporter`), a process without a model and without a GPU.

A worker's host exports the figures of its own target, and none once it is gone. This process goes on when the fleet is gone, so
that Prometheus still sees that jobs wait and no worker lives.
"""

from __future__ import annotations

import signal
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.probes import Answers, listen, serve
from ourvidz_sdxl.queue_figures import QueueFigures
from ourvidz_sdxl.settings import Settings

PORT = 9091  # where HTTP_PORT is not set
DATABASE_UP = ("sdxl_database_up", "1 if the exporter's last look at the queue in the database succeeded, else 0.")


class Exporter:
    """Answers for `probes`: /health is 200 while the process lives, /ready while the last look at the database succeeded."""

    def __init__(self, queue: QueueFigures) -> None:
        self._queue = queue
        self._registry = CollectorRegistry()
        self._registry.register(queue)
        self._database_up = Gauge(*DATABASE_UP, registry=self._registry)
        self.answers = Answers(health=lambda: ([], {}), ready=self._ready, metrics=self._metrics)

    def _ready(self) -> tuple[list[str], dict[str, Any]]:
        problem = self._queue.problem
        self._queue.look_if_due()  # a probe may be all that ever asks
        return [problem] if problem else [], {}

    def _metrics(self) -> str:
        self._database_up.set(self._queue.problem is None)
        return generate_latest(self._registry).decode()


def export(settings: Settings) -> ExitCode:
    """Answers until SIGTERM or SIGINT. Raises SettingsInvalid where it cannot listen."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # for `sigwait`; the threads that follow inherit it
    listener = listen(with_port(settings))
    queue = QueueFigures(settings, all_targets=True)
    queue.look_if_due()  # so that the first scrape finds figures
    if listener:
        serve(listener, Exporter(queue).answers)
    signal.sigwait(ends)
    return ExitCode.DRAINED


def with_port(settings: Settings) -> Settings:
    return settings if settings.http_port is not None else settings.model_copy(update={"http_port": PORT})
