"""The queue's length as Prometheus figures: asked of the database now and then, in the background, once somebody reads them.

A host tells them of its workers' target, the exporter (`exporter`) of all targets. Every host would tell the same, so the
larger the fleet, the less often each asks: all together at most twice in three seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import httpx
import structlog
from postgrest.exceptions import APIError
from prometheus_client.core import GaugeMetricFamily, Metric
from supabase import Client

from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.settings import Settings

EVERY_SECONDS = 15.0
HOSTS_AT_THAT_RATE = 10
STALE_AFTER_INTERVALS = 4  # then nothing is better than what was
REQUEST_SECONDS = 5.0
MAX_TARGETS = 100  # of all targets: a user may ask for one that no worker has, and each is a label of its own

FAMILIES = {
    "waiting": ("sdxl_queue_waiting_jobs", "Jobs of the target that are due and not claimed."),
    "delayed": ("sdxl_queue_delayed_jobs", "Jobs that wait for the time that they were put off to."),
    "running": ("sdxl_queue_running_jobs", "Jobs that workers hold."),
    "oldest_waiting_seconds": ("sdxl_queue_oldest_waiting_seconds", "Since the oldest waiting job was asked for."),
    "live_workers": ("sdxl_queue_live_workers", "Workers of the target that the database has heard of lately."),
}

Row = Mapping[str, Any]

log = structlog.get_logger()


class QueueFigures:
    """A collector for a registry. `ask` returns rows of public.queue_health: that of the worker's target, or all of them."""

    def __init__(
        self,
        settings: Settings,
        ask: Callable[[], Sequence[Row]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        all_targets: bool = False,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._ask = ask or self._ask_database
        self._all_targets = all_targets
        self._lock = threading.Lock()
        self._rows: Sequence[Row] = ()
        self._seen_at = self._asked_at = float("-inf")
        self._every_seconds = EVERY_SECONDS
        self._problem: str | None = "the database has not been asked yet"

    @property
    def problem(self) -> str | None:
        """Reason why the last look failed; None where it succeeded."""
        with self._lock:
            return self._problem

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            rows = self._rows
            stale = self._clock() - self._seen_at > STALE_AFTER_INTERVALS * self._every_seconds
        self.look_if_due()  # for the next scrape
        if stale:
            return
        for column, (name, documentation) in FAMILIES.items():
            family = GaugeMetricFamily(name, documentation, labels=["target_worker"])
            for row in rows:
                family.add_metric([row["target_worker"]], row.get(column) or 0)
            yield family

    def look_if_due(self) -> None:
        """Asks the database, in the background, unless that was done lately."""
        now = self._clock()
        with self._lock:
            due = now - self._asked_at >= self._every_seconds
            if due:
                self._asked_at = now
        if due:
            threading.Thread(target=self._look, name="queue-figures", daemon=True).start()

    def _look(self) -> None:
        try:
            rows = self._ask()
        except (APIError, httpx.HTTPError) as error:
            log.warning("queue_not_read", reason=type(error).__name__)
            with self._lock:
                self._problem = f"the database could not be read: {type(error).__name__}"
            return
        with self._lock:
            self._rows, self._seen_at, self._problem = rows, self._clock(), None
            if not self._all_targets:  # each worker's host asks
                live_workers = max(row.get("live_workers") or 0 for row in rows)
                self._every_seconds = EVERY_SECONDS * max(1.0, live_workers / HOSTS_AT_THAT_RATE)

    def _ask_database(self) -> Sequence[Row]:
        target = self._settings.target_worker
        query = self._client.table("queue_health").select(",".join(("target_worker", *FAMILIES)))
        if self._all_targets:
            query = query.order("live_workers", desc=True).order("waiting", desc=True).limit(MAX_TARGETS)
        else:
            query = query.eq("target_worker", target)
        rows = cast("list[Row]", query.execute().data)
        if not isinstance(rows, list):
            raise httpx.DecodingError("not PostgREST's answer")  # but some proxy's page
        return rows if rows or self._all_targets else [{"target_worker": target}]  # which has neither jobs nor workers

    @cached_property
    def _client(self) -> Client:
        return connect(self._settings.model_copy(update={"request_timeout_seconds": REQUEST_SECONDS}))
