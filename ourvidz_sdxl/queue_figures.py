"""The queue's length as Prometheus figures: asked of the database now and then, in the background, once somebody reads them.

Every host would tell the same, so the larger the fleet, the less often each asks: all together at most twice in three seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import httpx
import structlog
from postgrest.exceptions import APIError
from prometheus_client.core import GaugeMetricFamily, Metric

from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.settings import Settings

EVERY_SECONDS = 15.0
HOSTS_AT_THAT_RATE = 10
STALE_AFTER_INTERVALS = 4  # then nothing is better than what was
REQUEST_SECONDS = 5.0

FAMILIES = {
    "waiting": ("sdxl_queue_waiting_jobs", "Jobs of this worker's target that are due and not claimed."),
    "delayed": ("sdxl_queue_delayed_jobs", "Jobs that wait for the time that they were put off to."),
    "running": ("sdxl_queue_running_jobs", "Jobs that workers hold."),
    "oldest_waiting_seconds": ("sdxl_queue_oldest_waiting_seconds", "Since the oldest waiting job was asked for."),
    "live_workers": ("sdxl_queue_live_workers", "Workers of this target that the database has heard of lately."),
}

log = structlog.get_logger()


class QueueFigures:
    """A collector for a registry. `ask` returns the target's row of public.queue_health."""

    def __init__(
        self,
        settings: Settings,
        ask: Callable[[], Mapping[str, Any]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._ask = ask or self._ask_database
        self._lock = threading.Lock()
        self._row: Mapping[str, Any] = {}
        self._seen_at = self._asked_at = float("-inf")
        self._every_seconds = EVERY_SECONDS

    def collect(self) -> Iterator[Metric]:
        now = self._clock()
        with self._lock:
            row = self._row
            stale = now - self._seen_at > STALE_AFTER_INTERVALS * self._every_seconds
            due = now - self._asked_at >= self._every_seconds
            if due:
                self._asked_at = now
        if due:
            threading.Thread(target=self._look, name="queue-figures", daemon=True).start()
        if stale:
            return
        for column, (name, documentation) in FAMILIES.items():
            family = GaugeMetricFamily(name, documentation, labels=["target_worker"])
            family.add_metric([self._settings.target_worker], row.get(column) or 0)
            yield family

    def _look(self) -> None:
        try:
            row = self._ask()
        except (APIError, httpx.HTTPError) as error:
            log.warning("queue_not_read", reason=type(error).__name__)
            return
        with self._lock:
            self._row, self._seen_at = row, self._clock()
            self._every_seconds = EVERY_SECONDS * max(1.0, (row.get("live_workers") or 0) / HOSTS_AT_THAT_RATE)

    def _ask_database(self) -> Mapping[str, Any]:
        settings = self._settings.model_copy(update={"request_timeout_seconds": REQUEST_SECONDS})
        query = connect(settings).table("queue_health").select(",".join(FAMILIES)).eq("target_worker", settings.target_worker)
        rows = cast("list[dict[str, Any]]", query.execute().data)
        return rows[0] if rows else {}
