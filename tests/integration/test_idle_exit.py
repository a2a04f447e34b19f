"""A worker that nothing was asked of for long enough ends, and takes its pod along, so that nobody pays for idle hours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ourvidz_sdxl import pod
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.pod import remove_own_pod
from ourvidz_sdxl.settings import Settings
from tests.fake_runpod import FakeRunPod
from tests.integration.conftest import Database, User
from tests.processes import STUB, SUPERVISED_STUB, WorkerProcess

TARGET = "idle"
SOON: dict[str, Any] = {"idle_exit_minutes": 2 / 60, "poll_interval_connected_seconds": 0.5}


@pytest.fixture
def runpod() -> Iterator[FakeRunPod]:
    with FakeRunPod() as running:
        for pod_id in ("mine", "another"):
            running.pods[pod_id] = {"id": pod_id, "name": pod_id, "status": "RUNNING"}
        yield running


def in_a_pod(runpod: FakeRunPod, **others: Any) -> dict[str, Any]:
    given = {"runpod_pod_id": "mine", "runpod_api_key": runpod.key, "runpod_rest_url": runpod.rest_url}
    return {"target_worker": TARGET} | SOON | given | others


def test_it_ends_when_nothing_was_asked_for_long_enough(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker=TARGET, **SOON, worker_id="idle") as worker:
        first = user.insert(target_worker=TARGET)
        worker.wait_for("job_completed", job_id=first["id"])
        worker.wait_for("worker_idle")
        assert worker.wait_for_exit() == ExitCode.DRAINED
    assert db.execute("select state, error from public.workers where id = 'idle'").fetchone() == {"state": "stopped", "error": None}


def test_work_keeps_it(supabase: EmbeddedSupabase, user: User) -> None:
    """A job that takes longer than the idle time, and the pauses between jobs, do not count together."""
    with WorkerProcess(supabase, STUB, target_worker=TARGET, **SOON, stub_step_seconds=0.2) as worker:
        for _ in range(2):
            job = user.insert(target_worker=TARGET)  # 15 steps: 3 s
            worker.wait_for("job_completed", job_id=job["id"])
        assert not [event for event in worker.events if event["event"] == "worker_idle"]
        worker.wait_for("worker_idle")


def test_the_supervisor_removes_the_pod_when_all_have_ended(supabase: EmbeddedSupabase, runpod: FakeRunPod) -> None:
    with WorkerProcess(supabase, SUPERVISED_STUB, **in_a_pod(runpod)) as worker:
        worker.wait_for("pod_removed", pod_id="mine")
        assert worker.wait_for_exit() == ExitCode.DRAINED
    assert set(runpod.pods) == {"another"}
    assert runpod.requests == runpod.asked("DELETE", "/pods/mine")


def test_a_pod_that_is_told_to_stop_is_left_to_who_told_it(supabase: EmbeddedSupabase, runpod: FakeRunPod) -> None:
    with WorkerProcess(supabase, SUPERVISED_STUB, **in_a_pod(runpod, idle_exit_minutes=60)) as worker:
        worker.process.terminate()
        assert worker.wait_for_exit() == ExitCode.DRAINED
    assert runpod.requests == []


def settings(supabase: EmbeddedSupabase, **given: Any) -> Settings:
    return Settings.model_validate({"supabase_url": supabase.url, "supabase_service_role_key": supabase.secret_key} | given)


@pytest.fixture(autouse=True)
def _no_time_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod, "wait_random_exponential", lambda **_: lambda _state: 0.0)


def test_trouble_of_runpod_is_waited_out(supabase: EmbeddedSupabase, runpod: FakeRunPod) -> None:
    runpod.fail_next(2, 500)
    assert remove_own_pod(settings(supabase, **in_a_pod(runpod)))
    assert set(runpod.pods) == {"another"}


def test_a_lost_reply_changes_nothing(supabase: EmbeddedSupabase, runpod: FakeRunPod) -> None:
    runpod.lose_next(1)
    assert remove_own_pod(settings(supabase, **in_a_pod(runpod)))
    assert set(runpod.pods) == {"another"}


@pytest.mark.parametrize("fault", ["wrong key", "never answers"])
def test_what_cannot_be_removed_is_said_and_stays(supabase: EmbeddedSupabase, runpod: FakeRunPod, fault: str) -> None:
    given = in_a_pod(runpod)
    if fault == "wrong key":
        given["runpod_api_key"] = "rpa_other"
    else:
        runpod.fail_next(99, 503)
    assert not remove_own_pod(settings(supabase, **given))
    assert set(runpod.pods) == {"mine", "another"}


def test_outside_of_a_pod_nobody_is_asked(supabase: EmbeddedSupabase, runpod: FakeRunPod) -> None:
    assert not remove_own_pod(settings(supabase, runpod_rest_url=runpod.rest_url))
    assert not remove_own_pod(settings(supabase, runpod_pod_id="mine", runpod_rest_url=runpod.rest_url))
    assert runpod.requests == []
