"""The queue functions keep their promises, called as the worker calls them: through REST with the service key."""

from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import pytest
from postgrest.exceptions import APIError
from supabase import Client

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, User, sign_up

TARGET = "by-hand"  # no worker listens to it


@pytest.fixture
def user(supabase: EmbeddedSupabase) -> User:
    return replace(sign_up(supabase), target=TARGET)


@pytest.fixture
def other(supabase: EmbeddedSupabase) -> User:
    return replace(sign_up(supabase), target=TARGET)


class Caller:
    """A worker's side of the queue functions."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def claim(self, token: str, limit: int = 1, lease_seconds: int = 60) -> dict[str, Any]:
        answer: dict[str, Any] = self.call(
            "claim_jobs",
            p_worker="w",
            p_target=TARGET,
            p_job_types=["sdxl_image_fast"],
            p_token=token,
            p_limit=limit,
            p_lease_seconds=lease_seconds,
        )
        return answer

    def heartbeat(self, job_id: str, token: str, **more: Any) -> str:
        return cast("str", self.call("heartbeat_jobs", p_ids=[job_id], p_token=token, **more)[0]["verdict"])

    def finish(self, job_id: str, token: str, outcome: str, **more: Any) -> str:
        return cast("str", self.call("finish_job", p_id=job_id, p_token=token, p_outcome=outcome, **more))

    def call(self, function: str, **arguments: Any) -> Any:
        return self.client.rpc(function, arguments).execute().data


@pytest.fixture
def caller(service: Client) -> Caller:
    return Caller(service)


def image(index: int = 0) -> dict[str, Any]:
    return {
        "index": index,
        "bucket": "sdxl_image_fast",
        "path": f"u/j/1-{index}.png",
        "thumbnail_path": f"u/j/1-{index}.thumb.webp",
        "seed": 7,
        "width": 128,
        "height": 128,
        "mime_type": "image/png",
        "bytes": 9,
        "sha256": "0" * 64,
    }


def expire(db: Database) -> None:
    db.execute("update public.jobs set lease_expires_at = now() - interval '1 s' where status = 'processing'")


def due(db: Database) -> None:
    db.execute("update public.jobs set run_at = now() where status = 'queued'")


def test_a_claim_takes_the_job_under_a_lease_and_charges_an_attempt(db: Database, user: User, caller: Caller) -> None:
    job = user.insert()
    token = str(uuid4())
    answer = caller.claim(token)
    assert [row["id"] for row in answer["jobs"]] == [job["id"]]
    row = db.execute(
        "select status, attempts, leased_by, lease_token::text, lease_expires_at > now() as held from public.jobs"
    ).fetchone()
    assert row == {"status": "processing", "attempts": 1, "leased_by": "w", "lease_token": token, "held": True}


def test_a_claim_made_again_after_a_lost_reply_returns_the_same_job(db: Database, user: User, caller: Caller) -> None:
    user.insert()
    user.insert()
    token = str(uuid4())
    first, again = caller.claim(token), caller.claim(token)
    assert [row["id"] for row in first["jobs"]] == [row["id"] for row in again["jobs"]]
    assert again["jobs"][0]["attempts"] == 1


def test_an_empty_queue_says_so_and_when_to_come_back(db: Database, user: User, caller: Caller) -> None:
    assert caller.claim(str(uuid4())) == {"jobs": [], "more": False, "next_run_in_ms": None}
    user.insert()
    db.execute("update public.jobs set run_at = now() + interval '60 s'")
    answer = caller.claim(str(uuid4()))
    assert (answer["jobs"], answer["more"]) == ([], False)
    assert 50_000 < answer["next_run_in_ms"] <= 60_000


def test_a_job_for_other_workers_or_of_other_types_is_left(db: Database, user: User, caller: Caller) -> None:
    user.insert(target_worker="flux")
    user.insert(job_type="sdxl_image_high")
    assert caller.claim(str(uuid4()))["jobs"] == []


def test_the_end_and_its_images_appear_together_and_once(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    with pytest.raises(APIError, match="needs as many images"):
        caller.finish(job_id, token, "completed", p_images=[])
    assert caller.finish(job_id, token, "completed", p_images=[image()], p_metrics={"generation_time": 1.5}) == "ok"
    assert caller.finish(job_id, token, "completed", p_images=[image()]) == "already"
    assert caller.finish(job_id, token, "failed", p_error={"code": "x", "message": "y"}) == "lost"
    row = user.job(job_id)
    assert (row["status"], row["progress"], row["metrics"]) == ("completed", 100, {"generation_time": 1.5})
    assert row["completed_at"]
    assert [shown["path"] for shown in user.images(job_id)] == ["u/j/1-0.png"]


def test_a_stale_worker_is_fenced_off(db: Database, user: User, caller: Caller) -> None:
    job_id, stale, owner = user.insert()["id"], str(uuid4()), str(uuid4())
    caller.claim(stale)
    expire(db)
    assert caller.call("reap_jobs", p_target=TARGET) == 1
    due(db)
    caller.claim(owner)
    assert caller.heartbeat(job_id, stale) == "lost"
    assert caller.finish(job_id, stale, "completed", p_images=[image()]) == "lost"
    assert user.images(job_id) == []
    assert caller.heartbeat(job_id, owner) == "ok"
    assert caller.finish(job_id, owner, "completed", p_images=[image()]) == "ok"


def test_a_finish_after_the_lease_was_reaped_is_lost_even_before_another_claim(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    expire(db)
    caller.call("reap_jobs", p_target=TARGET)
    assert caller.finish(job_id, token, "retry") == "lost"


def test_a_heartbeat_renews_and_carries_progress(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token, lease_seconds=10)
    assert caller.heartbeat(job_id, token, p_lease_seconds=100, p_progress={job_id: 40}) == "ok"
    row = db.execute("select progress, lease_expires_at > now() + interval '50 s' as renewed from public.jobs").fetchone()
    assert row == {"progress": 40, "renewed": True}


def test_a_job_whose_workers_die_fails_after_its_attempts(db: Database, user: User, caller: Caller) -> None:
    job_id = user.insert()["id"]
    for _ in range(3):
        due(db)
        assert caller.claim(str(uuid4()))["jobs"]
        expire(db)
        caller.call("reap_jobs", p_target=TARGET)
    row = user.job(job_id)
    assert (row["status"], row["attempts"], row["error_code"]) == ("failed", 3, "lease_expired")


def test_a_release_gives_the_attempt_back_and_a_retry_does_not(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    assert caller.finish(job_id, token, "released") == "ok"
    assert (user.job(job_id)["status"], user.job(job_id)["attempts"]) == ("queued", 0)
    token = str(uuid4())
    assert caller.claim(token)["jobs"], "at once"
    assert caller.finish(job_id, token, "retry", p_error={"code": "out_of_memory", "message": "m"}) == "ok"
    row = user.job(job_id)
    assert (row["status"], row["attempts"], row["error_code"]) == ("queued", 1, "out_of_memory")


def test_cancelling(db: Database, user: User, caller: Caller) -> None:
    queued = user.insert()["id"]
    cancel(user, queued)
    assert user.job(queued)["status"] == "cancelled", "a queued job ends at once"
    running, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    cancel(user, running)
    assert user.job(running)["status"] == "processing"
    assert caller.heartbeat(running, token) == "cancel"
    assert caller.finish(running, token, "retry") == "ok"
    assert user.job(running)["status"] == "cancelled", "a retry of what nobody wants ends it"


def cancel(user: User, job_id: str) -> None:
    user.client.table("jobs").update({"cancel_requested_at": "2000-01-01"}).eq("id", job_id).execute()


def test_a_finished_row_never_changes(db: Database, user: User, service: Client) -> None:
    job_id = user.insert()["id"]
    cancel(user, job_id)
    with pytest.raises(APIError, match="never changes"):
        service.table("jobs").update({"status": "queued"}).eq("id", job_id).execute()


def test_the_history_tells_it_all(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    caller.heartbeat(job_id, token, p_progress={job_id: 50})
    caller.finish(job_id, token, "failed", p_error={"code": "invalid_reference", "message": "m"})
    events = user.client.table("job_events").select("status, attempt, worker, error_code").order("id").execute().data
    assert events == [
        {"status": "queued", "attempt": 0, "worker": None, "error_code": None},
        {"status": "processing", "attempt": 1, "worker": "w", "error_code": None},
        {"status": "failed", "attempt": 1, "worker": "w", "error_code": "invalid_reference"},
    ]


def test_one_users_flood_delays_another_by_a_few_places(db: Database, user: User, other: User, caller: Caller) -> None:
    user.client.table("jobs").insert([{"job_type": "sdxl_image_fast", "prompt": "x", "target_worker": TARGET}] * 100).execute()
    other.insert()
    owners = [row["user_id"] for _ in range(4) for row in caller.claim(str(uuid4()))["jobs"]]
    assert other.id in owners


def test_an_insert_never_fails_because_realtime_does(db: Database, user: User) -> None:
    db.execute("alter function realtime.send(jsonb, text, text, boolean) rename to send_away")
    try:
        assert user.insert()["status"] == "queued"
    finally:
        db.execute("alter function realtime.send_away(jsonb, text, text, boolean) rename to send")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("claim_jobs", {"p_worker": "w", "p_target": TARGET, "p_job_types": [], "p_token": str(uuid4())}),
        ("heartbeat_jobs", {"p_ids": [], "p_token": str(uuid4())}),
        ("finish_job", {"p_id": str(uuid4()), "p_token": str(uuid4()), "p_outcome": "completed"}),
        ("reap_jobs", {"p_target": TARGET}),
        ("report_worker", {"p_worker": "w", "p_state": "ready", "p_facts": {}}),
    ],
)
def test_a_client_cannot_call_them(user: User, function: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(APIError, match=f"permission denied for function {function}"):
        user.client.rpc(function, arguments).execute()
