"""How long a test waits for what hangs. A wait ends by itself when the thing happens or its process died; this is for neither."""

from __future__ import annotations

import statistics
import time

IDLE_SECONDS = 0.02  # that `work` takes on an idle core of a server of 2024
PATIENCE_SECONDS = 120.0  # on an idle machine; no wait of the suite takes a tenth of it there


def work() -> None:
    sum(n * n for n in range(300_000))


def slowness() -> float:
    """How many times as long as on an idle machine something takes here and now, beside whatever else runs; at least 1."""

    def seconds() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return max(1.0, statistics.median(seconds() for _ in range(5)) / IDLE_SECONDS)


TIMEOUT_SECONDS = PATIENCE_SECONDS * slowness()
