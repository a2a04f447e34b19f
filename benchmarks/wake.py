"""How long a job waits for an idle worker: from the browser's insert to the claim, by wake and by timer.

Both run on the same embedded Supabase: first with the timer at 30 s, so that only the wake can be quick; then without Realtime and
with the owner's timer of 2 s, which is what a polling worker does.
Times are Postgres's own: `started_at - created_at`, from the insert's transaction to the claim's.

    python -m benchmarks.wake [--jobs N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from supabase import Client, create_client

from benchmarks.results_file import write_results
from ourvidz_sdxl.local import EmbeddedSupabase
from tests.processes import STUB, WorkerProcess, scratch_supabase


def waits(supabase: EmbeddedSupabase, jobs: int, target: str, **settings: object) -> list[float]:
    """Milliseconds from insert to claim, one job after the other, each into an idle worker at a random moment."""
    client: Client = create_client(supabase.url, supabase.publishable_key)
    client.auth.sign_up({"email": f"{uuid4().hex}@example.com", "password": uuid4().hex})
    with WorkerProcess(supabase, STUB, target_worker=target, **settings) as worker:
        for number in range(jobs):
            time.sleep(0.05 + 0.37 * (number % 5))  # so that the timer is met at every phase
            row = (
                client.table("jobs")
                .insert({"job_type": "sdxl_image_fast", "prompt": "x", "target_worker": target})
                .execute()
                .data[0]
            )
            worker.wait_for("job_completed", job_id=row["id"])  # type: ignore[index, call-overload]
    with psycopg.connect(supabase.db_url) as db:
        query = "select extract(epoch from started_at - created_at) * 1000 from public.jobs where target_worker = %s"
        return [float(wait) for (wait,) in db.execute(query, (target,))]


@contextmanager
def without_realtime(supabase: EmbeddedSupabase) -> Iterator[None]:
    """Takes the wake away, as an outage of Realtime would; inserts go on."""
    with psycopg.connect(supabase.db_url, autocommit=True) as db:
        db.execute("alter function realtime.send(jsonb, text, text, boolean) rename to send_away")
        yield
        db.execute("alter function realtime.send_away(jsonb, text, text, boolean) rename to send")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    jobs = parser.parse_args().jobs
    with scratch_supabase() as supabase:
        by_wake = waits(supabase, jobs, "by-wake", poll_interval_seconds=30, poll_interval_connected_seconds=30)
        with without_realtime(supabase):
            by_timer = waits(supabase, jobs, "by-timer", poll_interval_connected_seconds=2)
    figures = [
        {
            "name": f"insert to claim, {label}",
            "unit": "ms",
            "ours": round(pick(by_wake), 1),
            "peer": round(pick(by_timer), 1),
            "peer_name": "polling every 2 s",
            "bar": 100 if label == "median" else None,
            "better": "lower",
        }
        for label, pick in (("median", statistics.median), ("p95", lambda values: statistics.quantiles(values, n=20)[-1]))
    ]
    write_results("wake", figures, packages=["supabase", "realtime"])


if __name__ == "__main__":
    main()
