"""How long a worker takes to hear: of a new job by wake and by timer, of a cancel, and of anything again after Realtime was away.

All on one embedded Supabase. Waits and latencies are Postgres's own times, from one transaction to the other:
`started_at - created_at` for a claim, `completed_at - cancel_requested_at` for a cancel.

    python -m benchmarks.wakeup [--jobs N] [--outage-seconds S]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from supabase import Client, create_client

from benchmarks.results_file import write_results
from ourvidz_sdxl.local import EmbeddedSupabase
from tests.fault_proxy import FaultProxy
from tests.processes import STUB, WorkerProcess, scratch_supabase

STEP_SECONDS = 0.1
TIMER_SECONDS = 2  # the owner's, while Realtime is away


def sign_up(supabase: EmbeddedSupabase) -> Client:
    client = create_client(supabase.url, supabase.publishable_key)
    client.auth.sign_up({"email": f"{uuid4().hex}@example.com", "password": uuid4().hex})
    return client


def insert(client: Client, target: str, **columns: Any) -> str:
    row = {"job_type": "sdxl_image_fast", "prompt": "x", "target_worker": target} | columns
    return str(client.table("jobs").insert(row).execute().data[0]["id"])  # type: ignore[index, call-overload]


def milliseconds(supabase: EmbeddedSupabase, target: str, difference: str) -> list[float]:
    with psycopg.connect(supabase.db_url) as db:
        query = f"select extract(epoch from {difference}) * 1000 from public.jobs where target_worker = %s"
        return [float(value) for (value,) in db.execute(query, (target,))]


def waits(supabase: EmbeddedSupabase, jobs: int, target: str, **settings: object) -> list[float]:
    """Milliseconds from insert to claim, one job after the other, each into an idle worker at a random moment."""
    client = sign_up(supabase)
    with WorkerProcess(supabase, STUB, target_worker=target, **settings) as worker:  # type: ignore[arg-type]
        for number in range(jobs):
            time.sleep(0.05 + 0.37 * (number % 5))  # so that the timer is met at every phase
            worker.wait_for("job_completed", job_id=insert(client, target))
    return milliseconds(supabase, target, "started_at - created_at")


def cancels(supabase: EmbeddedSupabase, jobs: int, target: str) -> list[float]:
    """Milliseconds from a cancel to the end of its job, in the midst of denoising."""
    client = sign_up(supabase)
    with WorkerProcess(supabase, STUB, target_worker=target, stub_step_seconds=STEP_SECONDS) as worker:
        for number in range(jobs):
            job_id = insert(client, target, steps=100)
            worker.wait_for("job_claimed", job_id=job_id)
            time.sleep(0.3 + STEP_SECONDS * number / jobs)  # so that a step is met at every phase
            client.table("jobs").update({"cancel_requested_at": "now"}).eq("id", job_id).execute()
            worker.wait_for("job_cancelled", job_id=job_id)
    return milliseconds(supabase, target, "completed_at - cancel_requested_at")


def outage(supabase: EmbeddedSupabase, seconds: float, target: str) -> tuple[float, list[float]]:
    """Seconds from Realtime's return to a subscription, and the milliseconds that jobs waited for the timer meanwhile."""
    client = sign_up(supabase)
    with FaultProxy(supabase.url) as proxy, WorkerProcess(supabase, STUB, target_worker=target, supabase_url=proxy.url) as worker:
        proxy.refuse_sockets()
        worker.wait_for("realtime_lost")
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            worker.wait_for("job_completed", job_id=insert(client, target))
            time.sleep(min(3.7, max(0.0, over - time.monotonic())))
        proxy.heal()
        healed = time.monotonic()
        worker.wait_for_another("realtime_subscribed")
        recovery = time.monotonic() - healed
        meanwhile = milliseconds(supabase, target, "started_at - created_at")
    return recovery, meanwhile


@contextmanager
def without_realtime(supabase: EmbeddedSupabase) -> Iterator[None]:
    """Takes the wake away, as an outage of Realtime would; inserts go on."""
    with psycopg.connect(supabase.db_url, autocommit=True) as db:
        db.execute("alter function realtime.send(jsonb, text, text, boolean) rename to send_away")
        yield
        db.execute("alter function realtime.send_away(jsonb, text, text, boolean) rename to send")


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def figure(name: str, unit: str, ours: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "unit": unit,
        "ours": round(ours, 1),
        "peer": None,
        "peer_name": None,
        "bar": None,
        "better": "lower",
    } | more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--outage-seconds", type=float, default=300)
    options = parser.parse_args()
    with scratch_supabase() as supabase:
        by_wake = waits(supabase, options.jobs, "by-wake", poll_interval_seconds=30, poll_interval_connected_seconds=30)
        with without_realtime(supabase):
            by_timer = waits(supabase, options.jobs, "by-timer", poll_interval_connected_seconds=TIMER_SECONDS)
        cancelled = cancels(supabase, options.jobs, "cancelled")
        recovery, meanwhile = outage(supabase, options.outage_seconds, "outage")
    peer = {"peer_name": f"polling every {TIMER_SECONDS} s"}
    away = f"Realtime away for {options.outage_seconds:g} s"
    figures = [
        figure(
            "insert to claim, median", "ms", statistics.median(by_wake), peer=round(statistics.median(by_timer), 1), bar=100, **peer
        ),
        figure("insert to claim, p95", "ms", p95(by_wake), peer=round(p95(by_timer), 1), **peer),
        figure("cancel to end, median, steps of 100 ms", "ms", statistics.median(cancelled)),
        figure("cancel to end, p95, steps of 100 ms", "ms", p95(cancelled), bar=1000 * STEP_SECONDS + 500),
        figure(f"{away}: until wake works again", "s", recovery, bar=15),
        figure(f"{away}: jobs done meanwhile", "", len(meanwhile), better="higher"),
        figure(f"{away}: their wait for the timer, median", "ms", statistics.median(meanwhile), bar=1000 * TIMER_SECONDS),
    ]
    write_results("wakeup", figures, packages=["supabase", "realtime"])


if __name__ == "__main__":
    main()
