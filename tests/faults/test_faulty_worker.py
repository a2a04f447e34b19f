"""A worker that cannot paint, beside one that can: no job pays for it, and it stops by itself."""

import sys
from typing import Any

import pytest

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, User, wait_until
from tests.processes import REAL, STUB, SUPERVISED_STUB, WorkerProcess

JOBS = 20
NAN = [sys.executable, "-m", "tests.nan_worker"]


def insert_jobs(user: User, target: str) -> None:
    rows = [{"job_type": "sdxl_image_fast", "prompt": "a red circle", "steps": 1, "target_worker": target}] * JOBS
    user.client.table("jobs").insert(rows).execute()


def outcomes(db: Database) -> list[dict[str, Any]]:
    return db.execute("select status, attempts, count(*) from public.jobs group by 1, 2").fetchall()


def worker_row(db: Database, worker_id: str) -> dict[str, Any]:
    row = db.execute("select state, error from public.workers where id = %s", (worker_id,)).fetchone()
    assert row
    return row


@pytest.mark.parametrize(
    ("good", "bad", "settings", "reason"),
    [
        (REAL, NAN, {}, "worker_faulty: "),
        (STUB, STUB, {"stub_raises": "BlankImage"}, "worker_faulty: 3 jobs in a row failed here (blank_image)"),
        (STUB, STUB, {"stub_raises": "RuntimeError"}, "worker_faulty: 3 jobs in a row failed here (unknown_error)"),
        (STUB, STUB, {"stub_raises": "IndexError", "stub_proof": "IndexError"}, "worker_faulty: IndexError"),
    ],
    ids=["NaN in the UNet", "blank images", "an unknown error", "a broken library"],
)
def test_a_good_worker_completes_every_job_and_the_faulty_one_stops_and_says_why(
    supabase: EmbeddedSupabase,
    db: Database,
    user: User,
    good: list[str],
    bad: list[str],
    settings: dict[str, Any],
    reason: str,
) -> None:
    target = "beside-a-faulty-one"
    with WorkerProcess(supabase, bad, target_worker=target, worker_id="bad", **settings) as faulty:
        insert_jobs(user, target)
        assert faulty.wait_for("worker_stopped_claiming")["reason"].startswith(reason)
        assert faulty.wait_for_exit() == 70
    row = worker_row(db, "bad")
    assert (row["state"], row["error"][: len(reason)]) == ("failed", reason)
    assert outcomes(db) == [{"status": "queued", "attempts": 0, "count": JOBS}], "no job was charged"
    with (
        WorkerProcess(supabase, good, target_worker=target, worker_id="good"),
        WorkerProcess(supabase, bad, target_worker=target, worker_id="bad", **settings) as faulty,
    ):
        wait_until(db, "select count(*) = 20 from public.jobs where completed_at is not null")
    assert outcomes(db) == [{"status": "completed", "attempts": 1, "count": JOBS}]


def test_jobs_survive_a_worker_whose_gpu_fails_each_of_them(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    target = "beside-a-broken-gpu"
    with (
        WorkerProcess(supabase, SUPERVISED_STUB, target_worker=target, worker_id="bad", stub_raises="GpuUnusable"),
        WorkerProcess(supabase, STUB, target_worker=target, worker_id="good", stub_step_seconds=0.05),
    ):
        insert_jobs(user, target)
        wait_until(db, "select count(*) = 20 from public.jobs where completed_at is not null")
    assert outcomes(db) == [{"status": "completed", "attempts": 1, "count": JOBS}]


@pytest.mark.parametrize("proof", [None, "ModelInvalid", "RuntimeError"])
def test_a_faulty_worker_is_started_again_and_given_up_in_the_end(
    supabase: EmbeddedSupabase, db: Database, user: User, proof: str | None
) -> None:
    target = "given-up"
    settings: dict[str, Any] = {"stub_raises": "BlankImage"} | ({"stub_proof": proof} if proof else {})
    with WorkerProcess(supabase, SUPERVISED_STUB, target_worker=target, worker_id="bad", **settings) as worker:
        insert_jobs(user, target)
        worker.wait_for("gpu_given_up")
        assert worker.wait_for_exit() == 70
    assert worker_row(db, "bad")["error"].startswith("worker_faulty: ")
    if proof:
        assert outcomes(db) == [{"status": "queued", "attempts": 0, "count": JOBS}], "jobs of a failed proof are never charged"


def test_an_error_of_a_library_on_this_jobs_input_is_not_retried(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker="refusing") as worker:
        job = user.insert(target_worker="refusing", prompt="raise ValueError")
        worker.wait_for("generation_error", job_id=job["id"])
    row = user.job(job["id"])
    assert (row["status"], row["attempts"], row["error_code"]) == ("failed", 1, "invalid_job")
