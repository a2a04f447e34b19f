"""How fast the queue is: claim and finish a second beside procrastinate and PGQueuer, heartbeats, and claims from a full table.

All on the Postgres of one embedded Supabase, in rounds that take turns. A job of ours is whole: fenced by its lease, with history
by trigger, one row of job_images, and two broadcasts that Realtime delivers; those of the peers do nothing. Each has one connection
(the peers may open more) and takes one job at a time; each call is a transaction of its own, and each commit waits for the disk.

    python -m benchmarks.queue [--rounds N]     # installs the peers into .local/peers first
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb
from supabase import create_client

from benchmarks.results_file import write_results
from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from tests.processes import scratch_supabase

PEERS = ROOT / ".local" / "peers"
REQUIREMENTS = ROOT / "requirements-bench.txt"
TARGET = "bench"
JOBS = 600
USERS = 20
CLAIM = "select public.claim_jobs('w', 'bench', array['sdxl_image_fast'], %s)"
FINISH = "select public.finish_job(%s, %s, 'completed', %s)"
HEARTBEAT = "select * from public.heartbeat_jobs(%s, %s, 60)"
INSERT = """insert into public.jobs (user_id, job_type, prompt, target_worker)
            select %s, 'sdxl_image_fast', 'a red circle on a blue background', 'bench' from generate_series(1, %s)"""

Connection = psycopg.Connection[Any]


def image(job_id: str) -> dict[str, Any]:
    names = {
        "path": f"u/{job_id}/1-0.png",
        "thumbnail_path": f"u/{job_id}/1-0.thumb.webp",
        "mime_type": "image/png",
        "sha256": "0" * 64,
    }
    return {"index": 0, "bucket": "sdxl_image_fast", "seed": 7, "width": 128, "height": 128, "bytes": 9} | names


def rate(moments: list[float]) -> float:
    """Jobs a second between the first and the last tenth, where starting and stopping do not count."""
    first, last = len(moments) // 10, len(moments) * 9 // 10
    return (last - first) / (moments[last] - moments[first])


def value(connection: Connection, query: str, *arguments: Any) -> Any:
    row = connection.execute(query.encode(), arguments).fetchone()
    assert row
    return row[0]


def milliseconds(connection: Connection, query: str, *arguments: Any) -> float:
    start = time.perf_counter()
    connection.execute(query.encode(), arguments)
    return (time.perf_counter() - start) * 1000


@contextmanager
def as_worker(supabase: EmbeddedSupabase) -> Iterator[Connection]:
    with psycopg.connect(supabase.db_url, autocommit=True, prepare_threshold=0) as connection:
        connection.execute("set role service_role")
        yield connection


def users(db: Connection) -> list[str]:
    return [str(user) for (user,) in db.execute("select id from auth.users where email like '%@bench.example'")]


def queue_up(db: Connection, jobs: int) -> None:
    for user in users(db):
        db.execute(INSERT, (user, jobs // USERS))


def empty(db: Connection) -> None:
    db.execute("truncate public.jobs cascade")
    db.execute("truncate realtime.messages")


def work(worker: Connection, jobs: int) -> tuple[list[float], list[float]]:
    """When each of the jobs was claimed, and how many ms its claim took."""
    moments, claims = [], []
    for _ in range(jobs):
        token, start = uuid4(), time.perf_counter()
        answer = value(worker, CLAIM, token)
        moments.append(time.perf_counter())
        claims.append((moments[-1] - start) * 1000)
        job_id = answer["jobs"][0]["id"]
        assert value(worker, FINISH, job_id, token, Jsonb([image(job_id)])) == "ok"
    return moments, claims


# ---- beside the peers


def our_rate(supabase: EmbeddedSupabase, db: Connection) -> float:
    empty(db)
    queue_up(db, JOBS)
    db.execute("vacuum analyze public.jobs, private.leases")
    with as_worker(supabase) as worker:
        return rate(work(worker, JOBS)[0])


def bare_rate(supabase: EmbeddedSupabase, db: Connection) -> float:
    """The same without what the peers do not do: history and broadcasts."""
    db.execute("alter table public.jobs disable trigger jobs_updated")
    try:
        return our_rate(supabase, db)
    finally:
        db.execute("alter table public.jobs enable trigger jobs_updated")


def rest_rate(supabase: EmbeddedSupabase, db: Connection, jobs: int = 200) -> float:
    """The same through REST, as the worker does it."""
    empty(db)
    queue_up(db, jobs)
    client = create_client(supabase.url, supabase.secret_key)
    moments = []
    for _ in range(jobs):
        claim = {"p_worker": "w", "p_target": TARGET, "p_job_types": ["sdxl_image_fast"], "p_token": str(uuid4())}
        answer: Any = client.rpc("claim_jobs", claim).execute().data
        job_id = answer["jobs"][0]["id"]
        moments.append(time.perf_counter())
        finish = {"p_id": job_id, "p_token": claim["p_token"], "p_outcome": "completed", "p_images": [image(job_id)]}
        assert client.rpc("finish_job", finish).execute().data == "ok"
    return rate(moments)


def peer_rate(supabase: EmbeddedSupabase, db: Connection, name: str) -> float:
    db.execute("drop database if exists peer with (force)")
    db.execute("create database peer template template0")
    url = supabase.db_url.rsplit("/", 1)[0] + "/peer"
    # -P: the script's folder holds a queue.py, which is not the standard library's
    command = [str(PEERS / "bin" / "python"), "-P", str(Path(__file__).with_name("queue_peers.py")), name, url, str(JOBS)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, timeout=120)
    assert done.returncode == 0, done.stderr
    moments = json.loads(done.stdout.splitlines()[-1])
    assert len(moments) == JOBS
    db.execute("drop database peer with (force)")
    return rate(moments)


def install_peers() -> None:
    stamp = PEERS / "installed"
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEERS)], check=True)
    pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(REQUIREMENTS.read_text())


# ---- by themselves


def heartbeats(supabase: EmbeddedSupabase, db: Connection, workers: int = 200, beats: int = 50) -> tuple[float, float]:
    """The share of heap-only updates in percent, and the median cost of one heartbeat in ms."""
    empty(db)
    queue_up(db, workers)
    with as_worker(supabase) as worker:
        held = []
        for _ in range(workers):
            token = uuid4()
            held.append((value(worker, CLAIM, token)["jobs"][0]["id"], token))
        db.execute("vacuum analyze public.jobs, private.leases")
        before = updates(worker)
        costs = [milliseconds(worker, HEARTBEAT, [job_id], token) for _ in range(beats) for job_id, token in held]
        made, hot = (after - earlier for after, earlier in zip(updates(worker), before, strict=True))
    assert made == workers * beats
    return 100 * hot / made, statistics.median(costs)


def updates(connection: Connection) -> tuple[int, int]:
    """Updates of leases by anybody so far, and how many of them were heap-only."""
    connection.execute("select pg_stat_force_next_flush()")
    query = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'private.leases'::regclass"
    made, hot = connection.execute(query).fetchone() or (0, 0)
    return made, hot


def claim_p99(supabase: EmbeddedSupabase, db: Connection, finished: int) -> float:
    """ms of a claim from 400 waiting jobs, with so many finished ones kept; the median of three times."""
    empty(db)
    with db.transaction():
        db.execute("set local session_replication_role = replica")
        db.execute(
            """insert into public.jobs (user_id, job_type, prompt, target_worker, status, completed_at, idempotency_key)
               select id, 'sdxl_image_fast', 'a red circle on a blue background', 'bench', 'completed', now(), n::text
                 from auth.users, generate_series(1, %s) n where email like '%%@bench.example'""",
            (finished // USERS,),
        )
        db.execute(
            """insert into private.leases (job_id, state, user_id, target_worker, job_type, priority, run_at, cost, fair_key)
               select id, 'ended', user_id, target_worker, job_type, priority, run_at, 1, 1 from public.jobs"""
        )
    db.execute("vacuum analyze public.jobs, private.leases")
    times = []
    for _ in range(3):
        queue_up(db, 400)
        with as_worker(supabase) as worker:
            work(worker, 20)  # plans and caches
            times.append(statistics.quantiles(work(worker, 380)[1], n=100)[-1])
    return statistics.median(times)


def insert_costs(db: Connection, rows: int, times: int) -> float:
    """ms of one INSERT of so many rows, into an idle queue."""
    costs, user = [], users(db)[0]
    for _ in range(times):
        empty(db)
        costs.append(milliseconds(db, INSERT, user, rows))
    return statistics.median(costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    install_peers()
    with scratch_supabase() as supabase, psycopg.connect(supabase.db_url, autocommit=True) as db:
        db.execute(
            "insert into auth.users (id, email) select gen_random_uuid(), n || '@bench.example' from generate_series(1, %s) n",
            (USERS,),
        )
        ways: dict[str, Callable[[], float]] = {
            "ours": lambda: our_rate(supabase, db),
            "procrastinate": lambda: peer_rate(supabase, db, "procrastinate"),
            "PGQueuer": lambda: peer_rate(supabase, db, "pgqueuer"),
            "bare": lambda: bare_rate(supabase, db),
            "REST": lambda: rest_rate(supabase, db),
        }
        hot, heartbeat_ms = heartbeats(supabase, db)  # first, while nobody else's updates count
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                rates[name].append(way())
        few, many = claim_p99(supabase, db, 1_000), claim_p99(supabase, db, 300_000)
        one_row, many_rows = insert_costs(db, 1, 100), insert_costs(db, 200, 10)
    median = {name: statistics.median(values) for name, values in rates.items()}
    peer_name = max(("procrastinate", "PGQueuer"), key=lambda name: median[name])
    slower = min(("procrastinate", "PGQueuer"), key=lambda name: median[name])
    peer = round(median[peer_name])

    def figure(name: str, unit: str, ours: float, better: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "unit": unit, "ours": ours, "peer": None, "peer_name": None, "bar": None, "better": better} | more

    beside = {"peer": peer, "peer_name": peer_name}
    write_results(
        "queue",
        [
            figure("claim + finish, one connection", "jobs/s", round(median["ours"]), "higher", bar=round(1.5 * peer), **beside),
            figure(
                "the same beside the other", "jobs/s", round(median["ours"]), "higher", peer=round(median[slower]), peer_name=slower
            ),
            figure("the same, no history, no broadcasts", "jobs/s", round(median["bare"]), "higher", **beside),
            figure("the same through REST, one client", "jobs/s", round(median["REST"]), "higher"),
            figure("heap-only heartbeats", "%", round(hot, 1), "higher", bar=90),
            figure("heartbeat, median", "ms", round(heartbeat_ms, 2), "lower"),
            figure("claim p99, 300k finished rows against 1k", "times", round(many / few, 2), "lower", bar=3),
            figure("claim p99, 1k finished rows", "ms", round(few, 2), "lower"),
            figure("claim p99, 300k finished rows", "ms", round(many, 2), "lower"),
            figure("insert of one row, median", "ms", round(one_row, 2), "lower"),
            figure("insert of 200 rows, median", "ms", round(many_rows, 1), "lower"),
        ],
        packages=["psycopg", "supabase"],
    )


if __name__ == "__main__":
    main()
