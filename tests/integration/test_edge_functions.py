"""The Edge Function queue-job: a job asked for by a call, under the same rules as an insert. Deno, tokens and database are real."""

from __future__ import annotations

import json
from typing import Any, cast

import httpx
import pytest
from supabase_functions.errors import FunctionsHttpError

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, User
from tests.pace import TIMEOUT_SECONDS
from tests.processes import STUB, WorkerProcess

JOB = {"job_type": "sdxl_image_fast", "prompt": "a red circle"}


def queue_job(supabase: EmbeddedSupabase, body: Any, token: str | None = None, **request: Any) -> httpx.Response:
    headers = {"apikey": supabase.publishable_key, "Authorization": f"Bearer {token or supabase.publishable_key}"}
    content = body if isinstance(body, bytes) else json.dumps(body)
    asked = {"method": "POST", "headers": headers, "content": content, "timeout": 30} | request
    return httpx.request(url=f"{supabase.url}/functions/v1/queue-job", **asked)


def error(response: httpx.Response) -> tuple[int, str, str | None]:
    said = response.json()["error"]
    return response.status_code, said["code"], said.get("field")


def test_a_client_library_calls_it_and_the_job_is_painted(supabase: EmbeddedSupabase, user: User) -> None:
    wish = JOB | {"seed": 7, "batch_size": 3, "metadata": {"from": "here"}, "target_worker": "by-function"}
    with WorkerProcess(supabase, STUB, target_worker="by-function") as worker:
        said = json.loads(cast("bytes", user.client.functions.invoke("queue-job", {"body": wish})))
        assert set(said) == {"jobId", "status", "queueName", "message"}
        assert (said["status"], said["queueName"]) == ("queued", "by-function")
        worker.wait_for("job_completed", job_id=said["jobId"])
    job = user.job(said["jobId"])
    assert {name: job[name] for name in wish} == wish
    assert (job["user_id"], job["status"], len(user.images(job["id"]))) == (user.id, "completed", 3)

    with pytest.raises(FunctionsHttpError) as refusal:
        user.client.functions.invoke("queue-job", {"body": JOB | {"batch_size": 2}})
    assert refusal.value.status == 400


def test_all_faults_are_said_at_once_and_nothing_is_inserted(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    response = queue_job(supabase, JOB | {"batch_size": 2, "seed": -1, "colour": "red"}, user.access_token)
    assert error(response) == (400, "unknown_field", "colour")
    faults = response.json()["error"]["faults"]
    assert {fault["field"] for fault in faults} == {"batch_size", "seed", "colour"}
    assert response.headers["access-control-allow-origin"] == "*"
    assert db.execute("select from public.jobs").fetchall() == []


def test_the_same_request_again_finds_the_same_job(supabase: EmbeddedSupabase, user: User, other: User) -> None:
    wish = JOB | {"idempotency_key": "the same & more"}
    first, again = (queue_job(supabase, wish, user.access_token) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["jobId"] == again.json()["jobId"]
    assert queue_job(supabase, wish, other.access_token).json()["jobId"] != first.json()["jobId"]
    without_key = [queue_job(supabase, JOB, user.access_token).json()["jobId"] for _ in range(2)]
    assert len(set(without_key)) == 2


def test_the_quota_holds_here_too(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    known = queue_job(supabase, JOB | {"idempotency_key": "known"}, user.access_token).json()["jobId"]
    db.execute(
        "insert into public.jobs (user_id, job_type, prompt) select %s, 'sdxl_image_fast', 'x' from generate_series(1, 199)",
        (user.id,),
    )
    assert error(queue_job(supabase, JOB, user.access_token))[:2] == (429, "too_many_active_jobs")
    assert queue_job(supabase, JOB | {"idempotency_key": "known"}, user.access_token).json()["jobId"] == known


def test_only_a_user_may_and_only_for_themselves(supabase: EmbeddedSupabase, user: User, other: User) -> None:
    header, claims, signature = user.access_token.split(".")
    forged = f"{header}.{claims}.{signature[:-4]}AAAA"
    for token in (None, forged, supabase.secret_key):
        assert error(queue_job(supabase, JOB, token))[:2] == (401, "not_signed_in")
    assert error(queue_job(supabase, JOB | {"user_id": other.id}, user.access_token))[:2] == (403, "user_id_must_be_your_own")
    theirs = JOB | {"reference_image_path": f"{other.id}/theirs.png", "reference_strength": 0.5}
    assert error(queue_job(supabase, theirs, user.access_token)) == (
        400,
        "reference_image_path_is_in_your_own_folder",
        "reference_image_path",
    )
    taken = queue_job(supabase, JOB, other.access_token).json()["jobId"]
    assert error(queue_job(supabase, JOB | {"id": taken}, user.access_token))[:2] == (409, "jobs_pkey")


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"null", b'"text"'])
def test_what_is_no_object_is_refused(supabase: EmbeddedSupabase, user: User, body: bytes) -> None:
    assert error(queue_job(supabase, body, user.access_token))[:2] == (400, "invalid_request")


def test_a_flood_is_not_read_to_its_end(supabase: EmbeddedSupabase, user: User) -> None:
    assert error(queue_job(supabase, b" " * 300_000, user.access_token))[:2] == (413, "request_too_large")


def test_browsers_of_any_origin_may_post(supabase: EmbeddedSupabase, user: User) -> None:
    preflight = queue_job(supabase, b"", method="OPTIONS")
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, "*")
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert error(queue_job(supabase, b"", user.access_token, method="PUT"))[:2] == (405, "method_not_allowed")


@pytest.mark.parametrize("name", ["wake-worker", "stop-idle"])
@pytest.mark.parametrize("token", [None, "undefined", "the service key"])
def test_without_a_secret_of_its_own_the_fleet_obeys_nobody(supabase: EmbeddedSupabase, name: str, token: str | None) -> None:
    headers = {"Authorization": f"Bearer {supabase.secret_key if token == 'the service key' else token}"} if token else {}
    response = httpx.post(
        f"{supabase.url}/functions/v1/{name}", json={"target_worker": "sdxl"}, headers=headers, timeout=TIMEOUT_SECONDS
    )
    assert error(response)[:2] == (401, "unauthorized")
