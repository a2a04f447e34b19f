"""Calls to REST and Storage that are lost, refused for a while, or slow: the job ends once, and images and rows agree."""

import hashlib
from collections.abc import Iterator

import pytest
from storage3.exceptions import StorageApiError

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.fault_proxy import OBJECT, RPC, FaultProxy
from tests.integration.conftest import Database, User, wait_until
from tests.processes import STUB, WorkerProcess

TARGET = "by-proxy"
UPLOAD = f"POST {OBJECT}sdxl_image_fast/"
DOWNLOAD = f"GET {OBJECT}.*reference_images/"


@pytest.fixture(scope="module")
def one_proxy(supabase: EmbeddedSupabase) -> Iterator[FaultProxy]:
    with FaultProxy(supabase.url) as running:
        yield running


@pytest.fixture
def proxy(one_proxy: FaultProxy) -> Iterator[FaultProxy]:
    one_proxy.counts.clear()
    yield one_proxy
    one_proxy.heal()


@pytest.fixture(scope="module")
def worker(supabase: EmbeddedSupabase, one_proxy: FaultProxy) -> Iterator[WorkerProcess]:
    with WorkerProcess(
        supabase,
        STUB,
        target_worker=TARGET,
        supabase_url=one_proxy.url,
        lease_seconds=10,
        request_timeout_seconds=2,
        poll_interval_connected_seconds=1,
        stub_step_seconds=0.04,
    ) as running:
        yield running


def claims_of(db: Database, job_id: str) -> int:
    row = db.execute("select claims from private.leases where job_id = %s", (job_id,)).fetchone()
    assert row
    return int(row["claims"])


def assert_it_ended_once(db: Database, user: User, job_id: str, images: int = 1) -> None:
    row = user.job(job_id)
    assert (row["status"], row["attempts"], claims_of(db, job_id)) == ("completed", 1, 1)
    ends = db.execute("select count(*) from public.job_events where job_id = %s and status = 'completed'", (job_id,)).fetchone()
    assert ends == {"count": 1}
    shown = user.images(job_id)
    assert len(shown) == images
    for image in shown:
        content = user.client.storage.from_(image["bucket"]).download(image["path"])
        assert (len(content), hashlib.sha256(content).hexdigest()) == (image["bytes"], image["sha256"])


@pytest.mark.parametrize("call", [RPC + "claim_jobs", RPC + "heartbeat_jobs", RPC + "finish_job", UPLOAD], ids=str)
def test_a_reply_that_is_lost_after_the_commit(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess, call: str
) -> None:
    proxy.lose_replies(call, times=2)
    # long enough for a heartbeat, which comes after a quarter of the lease
    job = user.insert(target_worker=TARGET, batch_size=3, steps=100 if "heartbeat" in call else 15)
    worker.wait_for("job_completed", job_id=job["id"])
    assert proxy.counts["reply lost"] == 2
    assert_it_ended_once(db, user, job["id"], images=3)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("function", ["claim_jobs", "heartbeat_jobs", "finish_job"])
def test_rest_that_answers_badly_for_a_while(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess, function: str, status: int
) -> None:
    proxy.answer(RPC + function, status, times=2)
    job = user.insert(target_worker=TARGET, steps=100 if function == "heartbeat_jobs" else 15)
    worker.wait_for("job_completed", job_id=job["id"])
    assert proxy.counts[f"answered {status}"] >= 1
    assert_it_ended_once(db, user, job["id"])


@pytest.mark.parametrize("status", [429, 500, 503, 544])
def test_storage_that_answers_badly_for_a_while(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess, status: int
) -> None:
    proxy.answer(UPLOAD, status, times=2)
    job = user.insert(target_worker=TARGET)
    worker.wait_for("job_completed", job_id=job["id"])
    assert proxy.counts[f"answered {status}"] == 2
    assert_it_ended_once(db, user, job["id"])


@pytest.mark.parametrize("call", [RPC + "claim_jobs", RPC + "heartbeat_jobs", RPC + "finish_job", UPLOAD], ids=str)
def test_an_answer_that_is_slower_than_the_request_timeout(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess, call: str
) -> None:
    proxy.delay(call, 3)
    job = user.insert(target_worker=TARGET, steps=100 if "heartbeat" in call else 15)
    worker.wait_for("job_completed", job_id=job["id"])
    assert proxy.counts["delayed"] == 1
    assert_it_ended_once(db, user, job["id"])


@pytest.mark.parametrize("status", [429, 500, 503, 544, None], ids=lambda status: str(status or "slow"))
def test_a_reference_that_storage_gives_late(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess, status: int | None
) -> None:
    from tests.integration.test_worker import reference_picture, upload_reference

    path = upload_reference(user, reference_picture())
    if status:
        proxy.answer(DOWNLOAD, status, times=2)
    else:
        proxy.delay(DOWNLOAD, 3)
    job = user.insert(target_worker=TARGET, reference_image_path=path, reference_strength=0.5)
    worker.wait_for("job_completed", job_id=job["id"])
    assert proxy.counts.total() == (2 if status else 1)
    assert_it_ended_once(db, user, job["id"])


@pytest.mark.parametrize(("attempts_refused", "warned"), [(1, []), (2, ["reference_dropped"])])
@pytest.mark.usefixtures("long_pauses")
def test_a_reference_is_dropped_only_when_the_last_attempt_does_not_reach_it_either(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess, attempts_refused: int, warned: list[str]
) -> None:
    from tests.integration.test_worker import reference_picture, upload_reference

    path = upload_reference(user, reference_picture())
    proxy.answer(DOWNLOAD, 503)
    job = user.insert(target_worker=TARGET, reference_image_path=path, reference_strength=0.5, fallback_to_text=True)
    db.execute("update public.jobs set max_attempts = 2 where id = %s", (job["id"],))
    worker.wait_for("generation_error", job_id=job["id"], error_code="supabase_unavailable")
    if attempts_refused == 1:
        proxy.heal()
    db.execute("update public.jobs set run_at = now()")
    worker.wait_for("job_completed", job_id=job["id"])
    row = user.job(job["id"])
    assert ([warning["code"] for warning in row["warnings"]], row["attempts"]) == (warned, 2)


NO_SPACE: dict[str, object] = {"statusCode": "500", "error": "Internal", "message": "write: no space left on device"}
DISK_FULL: dict[str, object] = {"code": "53100", "message": "could not extend file: No space left on device"}


@pytest.mark.usefixtures("long_pauses")
def test_a_storage_without_room_costs_an_attempt_and_not_the_job(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess
) -> None:
    proxy.answer(UPLOAD, 500, NO_SPACE)
    job = user.insert(target_worker=TARGET)
    worker.wait_for("generation_error", job_id=job["id"], error_code="upload_failed", outcome="retry")
    assert (user.job(job["id"])["status"], user.job(job["id"])["error_code"]) == ("queued", "upload_failed")
    proxy.heal()
    db.execute("update public.jobs set run_at = now()")
    worker.wait_for("job_completed", job_id=job["id"])
    assert user.job(job["id"])["attempts"] == 2


@pytest.mark.parametrize("function", ["claim_jobs", "heartbeat_jobs", "finish_job"])
def test_a_database_without_room_is_waited_for(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess, function: str
) -> None:
    proxy.answer(RPC + function, 503, DISK_FULL, times=3)
    job = user.insert(target_worker=TARGET, steps=100 if function == "heartbeat_jobs" else 15)
    worker.wait_for("job_completed", job_id=job["id"])
    assert proxy.counts["answered 503"] >= 1
    assert_it_ended_once(db, user, job["id"])


def test_who_cannot_reach_supabase_drops_the_job_before_the_lease_ends_and_publishes_nothing(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess
) -> None:
    job = user.insert(target_worker=TARGET, prompt="busy")
    db.execute("update public.jobs set max_attempts = 1 where id = %s", (job["id"],))
    worker.wait_for("job_claimed", job_id=job["id"])
    proxy.cut_off()
    proxy.refuse_sockets()
    worker.wait_for("job_lost", job_id=job["id"])
    held = db.execute("select expires_at > now() as held from private.leases where job_id = %s", (job["id"],)).fetchone()
    assert held == {"held": True}, "it let go before the database did"
    proxy.heal()
    db.execute("update private.leases set expires_at = now() where job_id = %s", (job["id"],))
    wait_until(db, "select status = 'failed' from public.jobs where id = %s", job["id"])
    assert user.job(job["id"])["error_code"] == "lease_expired"
    assert user.images(job["id"]) == []
    worker.wait_for("job_completed", job_id=user.insert(target_worker=TARGET)["id"])


def test_what_a_stale_worker_uploaded_is_never_seen_and_soon_removed(
    db: Database, user: User, proxy: FaultProxy, worker: WorkerProcess
) -> None:
    proxy.answer(RPC + "finish_job", 503)
    job = user.insert(target_worker=TARGET)
    wait_until(db, "select exists (select from storage.objects where name like %s)", f"%{job['id']}%.png")
    # somebody else has it now
    db.execute("update private.leases set token = gen_random_uuid(), worker = 'another' where job_id = %s", (job["id"],))
    proxy.heal()
    assert worker.wait_for("job_lost", job_id=job["id"])["outcome"] == "completed"
    assert user.images(job["id"]) == []
    with pytest.raises(StorageApiError):
        user.client.storage.from_("sdxl_image_fast").download(f"{user.id}/{job['id']}/1-0.png")
    db.execute(
        "update public.jobs set status = 'failed', error_code = 'x', completed_at = now() where id = %s",
        (job["id"],),
    )
    worker.wait_for("objects_removed")
    wait_until(db, "select not exists (select from storage.objects where name like %s)", f"%{job['id']}%")
