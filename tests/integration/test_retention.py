"""What is older than the operator keeps it goes, in small steps: rows, history and pictures; nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from supabase import Client

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, User, wait_until
from tests.processes import STUB, WorkerProcess

TARGET = "kept"
DAY = "interval '1 day'"


@pytest.fixture(autouse=True)
def _kept_for_30_days(db: Database) -> Iterator[None]:
    db.execute("update public.retention set days = 30, next_at = now()")
    db.execute("truncate private.removals")
    yield
    db.execute("update public.retention set days = null")


def finished(db: Database, user: User, days_ago: float, status: str = "completed") -> str:
    """A job that ended so long ago, with one image of which the bytes are in Storage."""
    job_id = str(uuid4())
    with db.transaction():
        db.execute("set local session_replication_role = replica")
        db.execute(
            f"""insert into public.jobs (id, user_id, job_type, prompt, target_worker, status, error_code, created_at, completed_at)
                values (%s, %s, 'sdxl_image_fast', 'x', %s, %s, 'unknown_error', now() - %s * {DAY}, now() - %s * {DAY})""",
            (job_id, user.id, TARGET, status, days_ago, days_ago),
        )
        db.execute("insert into public.job_events (job_id, status, attempt) values (%s, %s, 1)", (job_id, status))
        if status == "completed":
            db.execute(
                """insert into public.job_images
                     (job_id, index, bucket, path, thumbnail_path, seed, width, height, mime_type, bytes, sha256)
                   values (%s, 0, 'sdxl_image_fast', %s, %s, 1, 128, 128, 'image/png', 1, repeat('0', 64))""",
                (job_id, *objects_of(user, job_id)),
            )
    return job_id


def objects_of(user: User, job_id: str) -> list[str]:
    return [f"{user.id}/{job_id}/1-0.png", f"{user.id}/{job_id}/1-0.thumb.webp"]


def left(db: Database, table: str = "jobs", column: str = "id") -> set[str]:
    return {row["id"] for row in db.execute(f"select {column}::text as id from public.{table}").fetchall()}


def retire(service: Client, limit: int = 200, pause_seconds: float = 0) -> Any:
    """How many jobs were deleted."""
    return service.rpc("retire_jobs", {"p_limit": limit, "p_pause_seconds": pause_seconds}).execute().data


def to_be_removed(db: Database) -> list[str]:
    return [row["path"] for row in db.execute("select path from private.removals order by path").fetchall()]


def test_what_is_older_goes_with_its_history_and_its_objects_are_to_be_removed(db: Database, user: User, service: Client) -> None:
    old, young = finished(db, user, 31), finished(db, user, 29)
    failed = finished(db, user, 31, "failed")
    waiting = user.insert(target_worker=TARGET)["id"]
    db.execute(f"update public.jobs set created_at = now() - 100 * {DAY} where id = %s", (waiting,))
    assert retire(service) == 2
    assert to_be_removed(db) == objects_of(user, old)
    assert left(db) == {young, waiting}
    assert left(db, "job_images", "job_id") == {young}
    assert not {old, failed} & left(db, "job_events", "job_id")


def test_a_few_at_a_time_the_oldest_first(db: Database, user: User, service: Client) -> None:
    jobs = [finished(db, user, days) for days in (40, 50, 60)]
    assert retire(service, limit=1) == 1
    assert left(db) == set(jobs[:2])
    assert retire(service, limit=1, pause_seconds=15) == 1
    assert retire(service, limit=1, pause_seconds=15) == 0, "the fleet together pauses"
    assert left(db) == {jobs[0]}


def test_without_a_number_of_days_all_is_kept(db: Database, user: User, service: Client) -> None:
    old = finished(db, user, 3000)
    db.execute("update public.retention set days = null")
    assert retire(service) == 0
    assert left(db) == {old}


def test_workers_and_starts_that_are_long_gone_go_too(db: Database, service: Client) -> None:
    for worker, days in (("old", 31), ("young", 29)):
        service.rpc("report_worker", {"p_worker": worker, "p_state": "stopped", "p_facts": {
            "target_worker": TARGET, "host": "h", "version": "1"}}).execute()  # fmt: skip
        db.execute(f"update public.workers set last_seen_at = now() - %s * {DAY} where id = %s", (days, worker))
        db.execute(
            f"insert into public.worker_starts (target_worker, state, ended_at) values (%s, 'ended', now() - %s * {DAY})",
            (f"{TARGET}-{worker}", days),
        )
    retire(service)
    assert "old" not in left(db, "workers")
    assert "young" in left(db, "workers")
    assert left(db, "worker_starts", "target_worker") & {f"{TARGET}-old", f"{TARGET}-young"} == {f"{TARGET}-young"}


def test_a_worker_sees_to_it_and_to_the_bytes(supabase: EmbeddedSupabase, db: Database, user: User, service: Client) -> None:
    old = finished(db, user, 31)
    bucket = service.storage.from_("sdxl_image_fast")
    for path in objects_of(user, old):
        bucket.upload(path, b"x", {"content-type": "image/png"})
    db.execute("update private.sweep set next_at = now() where only_row")
    with WorkerProcess(supabase, STUB, target_worker=TARGET) as worker:
        assert worker.wait_for("old_jobs_deleted")["jobs"] == 1
        # and with them what tests before this one left
        wait_until(db, "not exists (select from storage.objects where name like %s)", f"{user.id}/%")
    assert left(db) == set()
    assert bucket.list(f"{user.id}/{old}") == []
