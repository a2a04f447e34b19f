"""Users delete jobs and everything of theirs: rows at once, objects by a worker, and nothing of anybody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from postgrest.exceptions import APIError
from realtime import RealtimeSubscribeStates
from storage3.exceptions import StorageApiError
from supabase import Client

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.fault_proxy import OBJECT, FaultProxy
from tests.integration.conftest import Database, User
from tests.integration.test_isolation import join, listener
from tests.integration.test_worker import reference_picture, upload_reference
from tests.pace import TIMEOUT_SECONDS
from tests.processes import STUB, WorkerProcess

TARGET = "deleting"


@pytest.fixture(autouse=True)
def _nothing_to_remove(db: Database) -> None:
    db.execute("truncate private.removals")


@pytest.fixture(scope="module")
def proxy(supabase: EmbeddedSupabase) -> Iterator[FaultProxy]:
    with FaultProxy(supabase.url) as running:
        yield running


@pytest.fixture(scope="module")
def worker(supabase: EmbeddedSupabase, proxy: FaultProxy) -> Iterator[WorkerProcess]:
    """It keeps house every two and a half seconds."""
    with WorkerProcess(
        supabase, STUB, target_worker=TARGET, supabase_url=proxy.url, lease_seconds=10, stub_step_seconds=0.05
    ) as running:
        yield running


def delete(user: User, *job_ids: str) -> Any:
    return user.client.rpc("delete_jobs", {"p_jobs": job_ids}).execute().data


def delete_everything(user: User) -> Any:
    return user.client.rpc("delete_everything").execute().data


def painted(user: User, worker: WorkerProcess) -> dict[str, Any]:
    """A completed job, with its images."""
    job = user.insert(target_worker=TARGET, steps=2, batch_size=3)
    worker.wait_for("job_completed", job_id=job["id"])
    return user.job(job["id"]) | {"images": user.images(job["id"])}


def wait_until_removed(db: Database) -> None:
    """Without the quarter of a minute that the fleet pauses between two looks."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while db.execute("select from private.removals").fetchall():
        assert time.monotonic() < deadline
        db.execute("update private.sweep set next_at = now() where only_row")
        time.sleep(0.1)


def objects(db: Database, user: User) -> set[str]:
    return {row["name"] for row in db.execute("select name from storage.objects where name like %s", (f"{user.id}/%",)).fetchall()}


def test_a_job_goes_with_its_history_and_its_pictures(db: Database, user: User, worker: WorkerProcess, service: Client) -> None:
    kept, job = painted(user, worker), painted(user, worker)
    assert delete(user, job["id"]) == 1
    for table, column in (("jobs", "id"), ("job_images", "job_id"), ("job_events", "job_id"), ("job_audit", "job_id")):
        assert user.client.table(table).select("*").eq(column, job["id"]).execute().data == [], table
    for image in job["images"]:
        with pytest.raises(StorageApiError):
            user.client.storage.from_(image["bucket"]).download(image["path"])
    wait_until_removed(db)
    assert objects(db, user) == {image[path] for image in kept["images"] for path in ("path", "thumbnail_path")}
    assert user.job(kept["id"])["status"] == "completed"
    assert service.storage.from_("sdxl_image_fast").list(f"{user.id}/{job['id']}") == []


def test_one_that_runs_stops_within_a_step_and_publishes_nothing(db: Database, user: User, worker: WorkerProcess) -> None:
    job = user.insert(target_worker=TARGET, steps=100)
    worker.wait_for("job_claimed", job_id=job["id"])
    assert delete(user, job["id"]) == 1
    worker.wait_for("job_cancelled", job_id=job["id"])
    assert db.execute("select from public.jobs").fetchall() == db.execute("select from private.leases").fetchall() == []
    assert objects(db, user) == set()


def test_one_that_waits_is_never_claimed(db: Database, user: User, worker: WorkerProcess) -> None:
    waiting = user.insert(target_worker=TARGET, idempotency_key="once")
    db.execute("update public.jobs set run_at = now() + interval '1 hour'")
    assert delete(user, waiting["id"], waiting["id"]) == 1
    assert delete(user, waiting["id"]) == 0, "asked for again, it is gone already"
    again = user.insert(target_worker=TARGET, idempotency_key="once", id=waiting["id"], steps=2)
    worker.wait_for("job_completed", job_id=again["id"])


def test_nobody_deletes_what_is_somebody_elses(db: Database, user: User, other: User, worker: WorkerProcess) -> None:
    job = painted(user, worker)
    reference = upload_reference(user, reference_picture())
    assert delete(other, job["id"]) == 0
    assert delete_everything(other) == 0
    assert user.job(job["id"])["status"] == "completed"
    assert user.client.storage.from_("reference_images").download(reference)


def test_everything_is_jobs_pictures_and_references(db: Database, user: User, other: User, worker: WorkerProcess) -> None:
    for owner in (user, other):
        upload_reference(owner, reference_picture())
        painted(owner, worker)
    user.insert(target_worker="nobody")
    assert delete_everything(user) == 2
    assert delete_everything(user) == 0
    wait_until_removed(db)
    assert objects(db, user) == set()
    assert len(objects(db, other)) == 7


def test_what_is_uploaded_again_afterwards_stays(db: Database, user: User, worker: WorkerProcess, service: Client) -> None:
    path = upload_reference(user, reference_picture())
    delete_everything(user)
    service.storage.from_("reference_images").remove([path])
    service.storage.from_("reference_images").upload(path, b"again", {"content-type": "image/png"})
    wait_until_removed(db)
    assert service.storage.from_("reference_images").download(path) == b"again"


def test_the_other_pages_of_the_user_hear_of_it(
    db: Database, user: User, other: User, supabase: EmbeddedSupabase, worker: WorkerProcess
) -> None:
    job = painted(user, worker)

    async def scene() -> list[Any]:
        own: list[Any] = []
        page = await listener(supabase, user.access_token)
        assert await join(page, f"user:{user.id}", own) is RealtimeSubscribeStates.SUBSCRIBED
        await asyncio.to_thread(delete, user, job["id"])
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not own:
                await asyncio.sleep(0.01)  # lets the socket's task run
        await page.realtime.close()
        return own

    [heard] = asyncio.run(scene())
    told = heard["payload"]
    assert (told["operation"], told["record"], told["old_record"]) == ("DELETE", None, {"id": job["id"], "status": "completed"})


def test_an_object_is_named_until_storage_has_it_no_more(
    db: Database, user: User, worker: WorkerProcess, proxy: FaultProxy
) -> None:
    job = painted(user, worker)
    proxy.answer(f"DELETE {OBJECT}", 500)
    delete(user, job["id"])
    db.execute("update private.sweep set next_at = now() where only_row")
    worker.wait_for("not_removed")
    with pytest.raises(APIError, match="jobs_pkey"):
        user.insert(target_worker=TARGET, id=job["id"])
    assert len(objects(db, user)) == 6
    proxy.heal()
    wait_until_removed(db)
    assert objects(db, user) == set()
    assert user.insert(target_worker="nobody", id=job["id"])["status"] == "queued"


def test_the_end_of_an_account_takes_its_pictures_along(db: Database, user: User, worker: WorkerProcess, service: Client) -> None:
    painted(user, worker)
    service.auth.admin.delete_user(user.id)
    wait_until_removed(db)
    assert objects(db, user) == set()
