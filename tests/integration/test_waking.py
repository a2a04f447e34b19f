"""From a row to a pod and back: the database decides, pg_net calls, the Edge Functions ask RunPod. All of it is real but RunPod."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from ourvidz_sdxl.local import EmbeddedSupabase, embedded_supabase
from tests.fake_runpod import FakeRunPod
from tests.integration.conftest import Database, User, sign_up, wait_until
from tests.pace import TIMEOUT_SECONDS
from tests.processes import STUB, WorkerProcess, scratch_folder

TARGET = "sdxl"
SECRET = "the fleet's own secret"
GPUS = "NVIDIA L40S, NVIDIA GeForce RTX 4090"


@dataclass(kw_only=True)
class Fleet:
    """A Supabase whose Edge Functions know a RunPod, and what a test does with both."""

    supabase: EmbeddedSupabase
    runpod: FakeRunPod
    db: Database = field(repr=False)
    folder: Path

    def clear(self, **settings: Any) -> None:
        """No jobs, no workers, no pods; the database may ask for one at a time unless the settings say otherwise."""
        self.runpod.heal()
        self.runpod.pods.clear()
        self.runpod.requests.clear()
        for table in ("public.jobs", "public.workers", "public.worker_starts", "private.fleet_calls", "public.fleet_settings"):
            self.db.execute(f"truncate {table} cascade")
        values = {"target_worker": TARGET, "max_workers": 1, "cool_down_seconds": 0} | settings
        columns, places = ", ".join(values), ", ".join(["%s"] * len(values))
        self.db.execute(f"insert into public.fleet_settings ({columns}) values ({places})", list(values.values()))

    def cron(self) -> None:
        """What pg_cron does every 10 seconds, after a long pause: whatever is to be tried again is due."""
        self.db.execute("truncate private.fleet_calls")
        self.db.execute("update public.worker_starts set next_try_at = now(), created_at = created_at - interval '1 hour'")
        self.db.execute("select private.call_fleet(%s)", (TARGET,))

    def call(self, name: str, *, token: str = SECRET, body: Any = None) -> httpx.Response:
        address, headers = f"{self.supabase.url}/functions/v1/{name}", {"Authorization": f"Bearer {token}"}
        return httpx.post(address, json=body or {"target_worker": TARGET}, headers=headers, timeout=TIMEOUT_SECONDS)

    def calls(self) -> int:
        """How many requests the database has sent so far."""
        row = self.db.execute("select coalesce(last_value, 0) as calls from pg_sequences where schemaname = 'net'").fetchone()
        assert row
        return int(row["calls"])

    def starts(self) -> list[dict[str, Any]]:
        return self.db.execute("select * from public.worker_starts order by created_at").fetchall()

    def wait_for_start(self, state: str) -> dict[str, Any]:
        wait_until(self.db, "exists (select from public.worker_starts where state = %s)", state)
        return next(start for start in self.starts() if start["state"] == state)

    def wait_for_error(self, words: str) -> dict[str, Any]:
        """The row of queue_health, once the error is there."""
        wait_until(self.db, "exists (select from public.queue_health where runpod_error like %s)", f"%{words}%")
        row = self.db.execute("select * from public.queue_health").fetchone()
        assert row
        return row

    def posts(self) -> int:
        return len(self.runpod.asked("POST", "/pods"))

    def worker(self, worker_id: str, **facts: Any) -> None:
        facts = {"target_worker": TARGET, "host": "h", "version": "1", "max_jobs": 2} | facts
        self.db.execute("select public.report_worker(%s, 'ready', %s)", (worker_id, Jsonb(facts)))


def edge_settings(runpod: FakeRunPod, **others: str) -> str:
    settings = {
        "FLEET_SECRET": SECRET,
        "RUNPOD_API_KEY": runpod.key,
        "RUNPOD_REST_URL": runpod.rest_url,
        "RUNPOD_SERVERLESS_URL": runpod.serverless_url,
        "RUNPOD_TEMPLATE_ID": "tpl",
        "RUNPOD_GPU_TYPES": GPUS,
        "RUNPOD_VOLUME_ID": "vol",
        "RUNPOD_DATA_CENTERS": "EU-SE-1",
        "RUNPOD_TIMEOUT_SECONDS": "0.5",
    } | others
    return "".join(f'{name}="{value}"\n' for name, value in settings.items())


def start_fleet(**settings: str) -> Iterator[Fleet]:
    with FakeRunPod() as runpod, scratch_folder() as folder:
        env = folder / "functions.env"
        env.write_text(edge_settings(runpod, **settings))
        with (
            embedded_supabase(data_dir=folder, functions_env=env) as supabase,
            psycopg.connect(supabase.db_url, autocommit=True, row_factory=dict_row) as db,
        ):
            for name, secret in {"functions_url": f"{supabase.url}/functions/v1", "fleet_secret": SECRET}.items():
                db.execute("select vault.create_secret(%s, %s)", (secret, name))
            yield Fleet(supabase=supabase, runpod=runpod, db=db, folder=folder)


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    yield from start_fleet()


@pytest.fixture
def fleet(running: Fleet) -> Fleet:
    running.clear()
    return running


@pytest.fixture(scope="module")
def user(running: Fleet) -> User:
    return sign_up(running.supabase)


def test_one_insert_wakes_one_worker_from_nothing(fleet: Fleet, user: User) -> None:
    begun = time.monotonic()
    job = user.insert(prompt="nobody's business")
    start = fleet.wait_for_start("requested")
    assert time.monotonic() - begun < 5
    [pod] = fleet.runpod.pods.values()
    assert pod["name"] == f"ourvidz-sdxl-{start['id']}"
    assert fleet.runpod.asked("POST", "/pods")[0].body == {
        "name": pod["name"],
        "templateId": "tpl",
        "cloud": "SECURE",
        "gpu": {"id": "NVIDIA L40S", "count": 1, "minCudaVersion": "13.0"},
        "dataCenterIds": ["EU-SE-1"],
        "mounts": {"network": [{"volumeId": "vol", "path": "/workspace"}]},
        "env": {"TARGET_WORKER": "sdxl"},
    }
    assert (start["provider"], start["pod_id"]) == ("pod", pod["id"])

    calls = fleet.calls()
    user.insert()
    fleet.cron()
    assert fleet.calls() == calls, "nothing is due"
    assert fleet.call("wake-worker").json() == {"target_worker": TARGET, "done": 0, "failed": 0}
    assert fleet.posts() == 1

    with WorkerProcess(fleet.supabase, STUB, runpod_pod_id=pod["id"]) as worker:
        worker.wait_for("job_completed", job_id=job["id"])
        assert fleet.starts()[0]["state"] == "running"
    log = (fleet.folder / "functions.log").read_text()
    assert "start_requested" in log
    for secret in ("nobody's business", fleet.runpod.key, SECRET, fleet.supabase.secret_key):
        assert secret not in log


def test_many_calls_at_once_ask_for_as_many_as_are_wanted(fleet: Fleet, user: User) -> None:
    fleet.db.execute("truncate private.fleet_calls")
    fleet.clear(max_workers=2, jobs_per_worker=1)
    fleet.db.execute("delete from vault.secrets where name = 'functions_url'")  # the database itself does not call meanwhile
    try:
        for _ in range(3):
            user.insert()
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: fleet.call("wake-worker").json(), range(6)))
    finally:
        fleet.db.execute("select vault.create_secret(%s, 'functions_url')", (f"{fleet.supabase.url}/functions/v1",))
    assert sum(answer["done"] for answer in answers) == 2
    assert len(fleet.runpod.pods) == fleet.posts() == 2


def test_after_one_was_asked_for_the_next_waits_until_the_cool_down_is_over(fleet: Fleet, user: User) -> None:
    fleet.clear(max_workers=2, jobs_per_worker=1, cool_down_seconds=60)
    user.insert()
    fleet.wait_for_start("requested")
    user.insert()
    assert fleet.call("wake-worker").json()["done"] == 0
    assert fleet.posts() == 1
    fleet.cron()  # an hour later
    wait_until(fleet.db, "2 = (select count(*) from public.worker_starts where state = 'requested')")
    assert len(fleet.runpod.pods) == 2


def test_a_stumbling_runpod_is_asked_again_at_once(fleet: Fleet, user: User) -> None:
    fleet.runpod.fail_next(1, 503)
    user.insert()
    start = fleet.wait_for_start("requested")
    assert (len(fleet.runpod.pods), start["error"]) == (1, None)


def test_one_that_keeps_failing_is_visible_and_asked_again_later(fleet: Fleet, user: User) -> None:
    fleet.runpod.fail_next(99, 500)
    user.insert()
    health = fleet.wait_for_error("RunPod answered 500: upstream request failed")
    assert (health["starting_workers"], health["runpod_attempts"], health["waiting"]) == (1, 1, 1)
    assert health["runpod_next_try_at"]
    [asked] = fleet.starts()
    fleet.runpod.heal()
    fleet.cron()
    start = fleet.wait_for_start("requested")
    assert start["id"] == asked["id"]
    assert [pod["name"] for pod in fleet.runpod.pods.values()] == [f"ourvidz-sdxl-{asked['id']}"]
    row = fleet.db.execute("select runpod_error from public.queue_health").fetchone()
    assert row == {"runpod_error": None}


def test_a_refusal_is_told_in_runpods_words_and_not_repeated_at_once(fleet: Fleet, user: User) -> None:
    fleet.runpod.fail_next(1, 402)
    user.insert()
    fleet.wait_for_error("RunPod answered 402")
    assert fleet.posts() == 1


def gpus_asked_for(fleet: Fleet) -> list[str]:
    return [asked.body["gpu"]["id"] for asked in fleet.runpod.asked("POST", "/pods")]


@pytest.mark.parametrize("status", [400, 403], ids=["none free", "not for this account"])
def test_where_a_gpu_is_not_to_be_had_the_next_one_is_asked_for(fleet: Fleet, user: User, status: int) -> None:
    fleet.runpod.gpus["NVIDIA L40S"] = status
    user.insert()
    start = fleet.wait_for_start("requested")
    assert gpus_asked_for(fleet) == GPUS.split(", ")
    assert {pod_id: pod["gpu"]["id"] for pod_id, pod in fleet.runpod.pods.items()} == {start["pod_id"]: "NVIDIA GeForce RTX 4090"}
    assert start["error"] is None


def test_where_none_is_to_be_had_runpods_words_are_told_and_the_preferred_one_is_asked_for_again(fleet: Fleet, user: User) -> None:
    fleet.runpod.gpus |= dict.fromkeys(GPUS.split(", "), 400)
    user.insert()
    health = fleet.wait_for_error("RunPod answered 400: There are no longer any instances")
    assert health["runpod_error"].endswith("(for NVIDIA GeForce RTX 4090, the last of 2)")
    assert fleet.posts() == 2
    fleet.runpod.heal()
    fleet.cron()
    fleet.wait_for_start("requested")
    assert gpus_asked_for(fleet) == [*GPUS.split(", "), "NVIDIA L40S"]


@pytest.mark.parametrize("status", [402, 422], ids=["no money", "a wrong request"])
def test_a_refusal_that_is_not_about_the_gpu_is_not_repeated_with_the_next(fleet: Fleet, user: User, status: int) -> None:
    fleet.runpod.gpus["NVIDIA L40S"] = status
    user.insert()
    fleet.wait_for_error(f"RunPod answered {status}: ")
    assert gpus_asked_for(fleet) == ["NVIDIA L40S"]


def test_a_stumble_at_the_second_gpu_makes_no_second_pod(fleet: Fleet, user: User) -> None:
    fleet.runpod.gpus["NVIDIA L40S"] = 400
    fleet.runpod.lose_next(1)
    user.insert()
    start = fleet.wait_for_start("requested")
    assert list(fleet.runpod.pods) == [start["pod_id"]]
    assert gpus_asked_for(fleet) == GPUS.split(", ")


@pytest.mark.parametrize(("seconds", "posts"), [(1, 2), (12, 1)], ids=["soon", "later"])
def test_who_asks_too_often_waits_as_long_as_runpod_says(fleet: Fleet, user: User, seconds: int, posts: int) -> None:
    """As long as a function may wait; else the database asks again."""
    fleet.runpod.retry_after_seconds = seconds
    fleet.runpod.fail_next(1, 429)
    user.insert()
    if posts == 1:
        fleet.wait_for_error("RunPod answered 429: rate limit exceeded")
    else:
        fleet.wait_for_start("requested")
    assert fleet.posts() == posts


def test_a_lost_reply_makes_no_second_pod(fleet: Fleet, user: User) -> None:
    fleet.runpod.lose_next(1)
    user.insert()
    start = fleet.wait_for_start("requested")
    assert list(fleet.runpod.pods) == [start["pod_id"]], fleet.runpod.requests
    assert fleet.posts() == 1


def test_a_runpod_that_answers_too_late_makes_no_second_pod(fleet: Fleet, user: User) -> None:
    fleet.runpod.delay_seconds = 1
    user.insert()
    fleet.wait_for_error("RunPod did not answer in time")
    [pod_id] = fleet.runpod.pods
    fleet.runpod.heal()
    fleet.cron()
    assert fleet.wait_for_start("requested")["pod_id"] == pod_id
    assert fleet.posts() == 1


def test_two_pods_of_one_start_become_one(fleet: Fleet, user: User) -> None:
    fleet.runpod.fail_next(1, 402)
    user.insert()
    fleet.wait_for_error("402")
    [start] = fleet.starts()
    for name in ("first", "second"):
        fleet.runpod.pods[name] = {"id": name, "name": f"ourvidz-sdxl-{start['id']}", "status": "RUNNING"}
    fleet.cron()
    assert fleet.wait_for_start("requested")["pod_id"] == "first"
    assert list(fleet.runpod.pods) == ["first"]


def test_what_is_not_needed_any_more_is_not_asked_for_again(fleet: Fleet, user: User) -> None:
    fleet.runpod.fail_next(1, 402)
    user.insert()
    fleet.wait_for_error("402")
    fleet.db.execute("update public.jobs set cancel_requested_at = now()")
    fleet.cron()
    fleet.wait_for_start("ended")
    assert (fleet.runpod.pods, fleet.posts()) == ({}, 1)


def two_pods(fleet: Fleet, user: User) -> tuple[str, str]:
    """Two pods with a worker each, both ready."""
    fleet.clear(max_workers=2, jobs_per_worker=1, idle_minutes=10)
    user.insert()
    user.insert()
    fleet.cron()
    wait_until(fleet.db, "2 = (select count(*) from public.worker_starts where state = 'requested')")
    first, second = fleet.runpod.pods
    for pod_id in (first, second):
        fleet.worker(f"worker-{pod_id}", pod_id=pod_id, idle_seconds=1)
    return first, second


def test_an_idle_pod_is_removed_and_a_busy_one_is_not(fleet: Fleet, user: User) -> None:
    idle, busy = two_pods(fleet, user)
    fleet.db.execute("select public.claim_jobs(%s, %s, '{sdxl_image_fast}', gen_random_uuid(), 2)", (f"worker-{busy}", TARGET))
    for pod_id in (idle, busy):
        fleet.worker(f"worker-{pod_id}", pod_id=pod_id, idle_seconds=3600)
    fleet.cron()
    ended = fleet.wait_for_start("ended")
    assert (ended["pod_id"], list(fleet.runpod.pods)) == (idle, [busy])
    worker = fleet.db.execute("select state from public.workers where pod_id = %s", (idle,)).fetchone()
    assert worker == {"state": "stopped"}
    assert fleet.call("stop-idle").json()["done"] == 0


def test_removing_is_tried_again_and_a_pod_that_is_gone_counts_as_removed(fleet: Fleet, user: User) -> None:
    first, second = two_pods(fleet, user)
    fleet.db.execute("truncate public.jobs cascade")
    for pod_id in (first, second):
        fleet.worker(f"worker-{pod_id}", pod_id=pod_id, idle_seconds=3600)
    del fleet.runpod.pods[second]
    fleet.runpod.fail_next(99, 502)
    fleet.cron()
    assert fleet.wait_for_error("RunPod answered 502")["stopping_workers"] == 2
    fleet.runpod.heal()
    wait_until(fleet.db, "2 = (select count(*) from public.worker_starts where error is not null)")
    fleet.cron()
    wait_until(fleet.db, "2 = (select count(*) from public.worker_starts where state = 'ended')")
    assert fleet.runpod.pods == {}


@pytest.mark.parametrize("name", ["wake-worker", "stop-idle"])
def test_only_who_knows_the_secret_may_call(fleet: Fleet, user: User, name: str) -> None:
    fleet.runpod.fail_next(99, 402)
    user.insert()
    for token in (SECRET[:-1], f"{SECRET}.", "-", user.access_token, fleet.supabase.secret_key):
        answer = fleet.call(name, token=token)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert fleet.call(name, body={"target_worker": "../x"}).status_code == 400
    assert fleet.call(name, body={"type": "INSERT", "table": "jobs", "record": {"target_worker": "another"}}).json() == {
        "target_worker": "another",
        "done": 0,
        "failed": 0,
    }, "as a database webhook sends it"


def test_a_wrong_url_or_secret_never_stops_an_insert(fleet: Fleet, user: User) -> None:
    fleet.db.execute("update vault.secrets set secret = 'http://127.0.0.1:1' where name = 'functions_url'")
    try:
        assert user.insert()["status"] == "queued"
        wait_until(fleet.db, "exists (select from net._http_response where error_msg is not null)")
        assert fleet.posts() == 0
    finally:
        fleet.db.execute(
            "update vault.secrets set secret = %s where name = 'functions_url'", (f"{fleet.supabase.url}/functions/v1",)
        )


def test_with_an_endpoint_set_a_serverless_request_is_sent_instead() -> None:
    for fleet in start_fleet(RUNPOD_ENDPOINT_ID="endpoint", RUNPOD_EXECUTION_SECONDS="900"):
        fleet.clear()
        fleet.runpod.fail_next(1, 429)
        sign_up(fleet.supabase).insert()
        start = fleet.wait_for_start("requested")
        [(endpoint, sent)] = fleet.runpod.endpoints_called
        assert (endpoint, start["provider"]) == ("endpoint", "serverless")
        assert sent["input"] == {"start_id": str(start["id"]), "target_worker": TARGET, "seconds": 870}
        assert sent["policy"] == {"executionTimeout": 900_000}
        assert start["pod_id"].startswith("request-")
        assert fleet.runpod.pods == {}


def test_one_template_serves_other_targets_volumes_and_drivers_too() -> None:
    others = {
        "RUNPOD_GPU_TYPES": "NVIDIA L4",
        "RUNPOD_GPU_COUNT": "2",
        "RUNPOD_CLOUD_TYPE": "COMMUNITY",
        "RUNPOD_MIN_CUDA_VERSION": "12.8",
        "RUNPOD_VOLUME_ID": "",
        "RUNPOD_DATA_CENTERS": "",
    }
    for fleet in start_fleet(**others):
        fleet.clear()
        fleet.db.execute("insert into public.fleet_settings (target_worker, max_workers) values ('anime', 1)")
        sign_up(fleet.supabase).insert(target_worker="anime")
        start = fleet.wait_for_start("requested")
        [asked] = fleet.runpod.asked("POST", "/pods")
        assert asked.body == {
            "name": f"ourvidz-anime-{start['id']}",
            "templateId": "tpl",
            "cloud": "COMMUNITY",
            "gpu": {"id": "NVIDIA L4", "count": 2, "minCudaVersion": "12.8"},
            "env": {"TARGET_WORKER": "anime"},
        }


def test_without_a_gpu_type_nothing_is_asked_of_runpod() -> None:
    for fleet in start_fleet(RUNPOD_GPU_TYPES=""):
        fleet.clear()
        sign_up(fleet.supabase).insert()
        fleet.wait_for_error("RUNPOD_GPU_TYPES is not set for the Edge Functions")
        assert fleet.runpod.requests == []
