"""100 jobs and 4 worker processes: every job is done once, and none is claimed twice."""

import time
from contextlib import ExitStack
from typing import Any, cast

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, sign_up
from tests.pace import TIMEOUT_SECONDS
from tests.processes import STUB, WorkerProcess

JOBS, WORKERS, USERS = 100, 4, 5
Rows = list[dict[str, Any]]


def test_every_job_once(supabase: EmbeddedSupabase, db: Database) -> None:
    users = [sign_up(supabase) for _ in range(USERS)]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(WorkerProcess(supabase, STUB, target_worker="many", worker_id=f"w{i}")) for i in range(WORKERS)
        ]
        ids: set[str] = set()
        for user in users:
            rows = [{"job_type": "sdxl_image_fast", "prompt": "x", "target_worker": "many"}] * (JOBS // USERS)
            ids |= {row["id"] for row in cast("Rows", user.client.table("jobs").insert(rows).execute().data)}
        events = events_until_all_are_done(workers)
    done = [event["job_id"] for event in events if event["event"] == "job_completed"]
    assert sorted(done) == sorted(ids), "each job was completed once, and by one worker"
    claims = [event["job_id"] for event in events if event["event"] == "job_claimed"]
    assert sorted(claims) == sorted(ids), "no job was claimed twice"
    states = db.execute(
        "select status, attempts, count(*), count(distinct worker) > 1 as shared"
        " from public.jobs join private.leases on job_id = id group by 1, 2"
    ).fetchall()
    assert states == [{"status": "completed", "attempts": 1, "count": JOBS, "shared": True}]
    assert db.execute("select count(*), count(distinct job_id) as jobs from public.job_images").fetchone() == {
        "count": JOBS,
        "jobs": JOBS,
    }
    assert db.execute("select count(*) from public.job_events").fetchone() == {"count": 3 * JOBS}


def events_until_all_are_done(workers: list[WorkerProcess]) -> list[dict[str, Any]]:
    """What the workers said, in no order, until they completed all jobs or said nothing for a while."""
    done, deadline = 0, time.monotonic() + TIMEOUT_SECONDS
    while done < JOBS and time.monotonic() < deadline:
        for worker in workers:
            event = worker.next_event(0.02)
            done += event is not None and event["event"] == "job_completed"
    return [event for worker in workers for event in worker.events]
