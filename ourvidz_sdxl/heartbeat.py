"""Keeps one lease alive, from a thread of its own that waits for nothing but the clock and the network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from ourvidz_sdxl.errors import SupabaseRefused, SupabaseUnavailable
from ourvidz_sdxl.queue import Lease, Queue

log = structlog.get_logger()


@contextmanager
def heartbeat(lease: Lease, queue: Queue, *, every_seconds: float) -> Iterator[None]:
    """Renews `lease` while the block runs, and ends it when the database says that it is cancelled or lost."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every_seconds):
            try:
                queue.heartbeat(lease)
            except (SupabaseUnavailable, SupabaseRefused) as error:
                log.warning("heartbeat_failed", job_id=str(lease.job_id), reason=str(error))

    threading.Thread(target=beat, name=f"heartbeat-{lease.job_id}", daemon=True).start()
    try:
        yield
    finally:
        over.set()
