"""How long a worker takes to hear: of a new job by wake and by timer, of a cancel, and of anything again after Realtime was away.

All on one embedded Supabase. Waits and latencies are Postgres's own times, from one transaction to the other:
`started_at - created_at` for a claim, `completed_at - cancel_requested_at` for a cancel.

    python -m benchmarks.wakeup [--jobs N] [--outage-seconds S]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import structlog
from supabase import Client, create_client

from benchmarks.results_file import write_results
from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import Wakeup
from tests.fault_proxy import FaultProxy
from tests.processes import STUB, WorkerProcess, environ, scratch_supabase

STEP_SECONDS = 0.1
TIMER_SECONDS = 2  # the owner's, while Realtime is away
FLEET = 20  # subscriptions beside the worker's: when one returns is a matter of chance


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


@dataclass(frozen=True, kw_only=True)
class Outage:
    """Seconds from Realtime's return until each subscription stands again, by the manner of the outage; and milliseconds that jobs
    waited for the timer meanwhile."""

    refused: list[float]
    silent: list[float]
    waits: list[float]


def outage(supabase: EmbeddedSupabase, seconds: float, target: str) -> Outage:
    """Two at once: a server that lets nobody in, where a worker is too, and one that lets everybody in and says nothing."""
    client = sign_up(supabase)
    with (
        FaultProxy(supabase.url) as refusing,
        FaultProxy(supabase.url) as silent,
        WorkerProcess(supabase, STUB, target_worker=target, supabase_url=refusing.url) as worker,
        fleet(supabase, refusing) as refused_fleet,
        fleet(supabase, silent) as silent_fleet,
    ):
        refusing.refuse_sockets()
        silent.silence_sockets()
        worker.wait_for("realtime_lost")
        over = time.monotonic() + seconds
        for number in range(round(seconds)):
            if time.monotonic() > over - 2 * TIMER_SECONDS:
                break
            worker.wait_for("job_completed", job_id=insert(client, target))
            time.sleep(TIMER_SECONDS * (0.5 + number * 0.618 % 1))  # so that the timer is met at every phase
        time.sleep(max(0.0, over - time.monotonic()))
        refusing.heal()
        refused = returns(refused_fleet)
        worker.wait_for_another("realtime_subscribed")
        silent.heal()
        return Outage(
            refused=refused, silent=returns(silent_fleet), waits=milliseconds(supabase, target, "started_at - created_at")
        )


@contextmanager
def fleet(supabase: EmbeddedSupabase, proxy: FaultProxy) -> Iterator[list[Wakeup]]:
    with ExitStack() as stack:
        settings = Settings.from_env(environ(supabase, supabase_url=proxy.url))
        listeners = [stack.enter_context(Wakeup(settings, on_cancel=lambda _: None)) for _ in range(FLEET)]
        assert all(listener.wait_connected(30) for listener in listeners)
        yield listeners


def returns(listeners: list[Wakeup]) -> list[float]:
    """Seconds from now until each is connected; gives up after a minute."""
    started = time.monotonic()
    waited: dict[Wakeup, float] = {}
    while len(waited) < len(listeners):
        for listener in listeners:
            if listener.connected:
                waited.setdefault(listener, time.monotonic() - started)
        assert time.monotonic() - started < 60, f"only {len(waited)} came back"
        time.sleep(0.02)
    return list(waited.values())


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
    logging.disable()  # the fleet's complaints, of which there are many
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with scratch_supabase() as supabase:
        by_wake = waits(supabase, options.jobs, "by-wake", poll_interval_seconds=30, poll_interval_connected_seconds=30)
        with without_realtime(supabase):
            by_timer = waits(supabase, options.jobs, "by-timer", poll_interval_connected_seconds=TIMER_SECONDS)
        cancelled = cancels(supabase, options.jobs, "cancelled")
        away = outage(supabase, options.outage_seconds, "outage")
    peer = {"peer_name": f"polling every {TIMER_SECONDS} s"}
    refused, silent = (f"Realtime {how} for {options.outage_seconds:g} s" for how in ("refusing", "silent"))
    back = f"until wake works again, worst of {FLEET}"
    figures = [
        figure(
            "insert to claim, median", "ms", statistics.median(by_wake), peer=round(statistics.median(by_timer), 1), bar=100, **peer
        ),
        figure("insert to claim, p95", "ms", p95(by_wake), peer=round(p95(by_timer), 1), **peer),
        figure("cancel to end, median, steps of 100 ms", "ms", statistics.median(cancelled)),
        figure("cancel to end, p95, steps of 100 ms", "ms", p95(cancelled), bar=1000 * STEP_SECONDS + 500),
        figure(f"{refused}: {back}", "s", max(away.refused), bar=15),
        figure(f"{silent}: {back}", "s", max(away.silent), bar=15),
        figure(f"{refused}: jobs done meanwhile", "", len(away.waits), better="higher"),
        figure(f"{refused}: their wait for the timer, median", "ms", statistics.median(away.waits), bar=1000 * TIMER_SECONDS),
        figure(f"{refused}: their wait for the timer, longest", "ms", max(away.waits)),
    ]
    write_results("wakeup", figures, packages=["supabase", "realtime"])


if __name__ == "__main__":
    main()
