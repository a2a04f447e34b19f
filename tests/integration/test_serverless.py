"""The worker on RunPod serverless: woken by a request, it drains the queue and ends; with RunPod's own SDK around it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any
from uuid import uuid4

import pytest

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from ourvidz_sdxl.serverless import Drain
from ourvidz_sdxl.settings import Settings
from tests import preloaded
from tests.integration.conftest import Database, User, wait_until
from tests.pace import TIMEOUT_SECONDS
from tests.processes import environ
from tests.stub_worker import StubEngine

TARGET = "serverless"


@pytest.fixture
def drain(supabase: EmbeddedSupabase, monkeypatch: pytest.MonkeyPatch) -> Drain:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own process keeps its handlers
    return make_drain(supabase)


def make_drain(supabase: EmbeddedSupabase, step_seconds: float = 0, **given: Any) -> Drain:
    settings = Settings.from_env(
        environ(supabase, target_worker=TARGET, worker_id="serverless-1", runpod_pod_id="x1", idle_exit_minutes=0.5 / 60, **given)
    )
    return Drain(settings, StubEngine(step_seconds), None, None)


def ask(drain: Drain, **wish: Any) -> dict[str, Any]:
    return asyncio.run(drain.handle({"id": "request-1", "input": wish}))


def status_of(db: Database, job: dict[str, Any]) -> str:
    row = db.execute("select status from public.jobs where id = %s", (job["id"],)).fetchone()
    assert row
    return str(row["status"])


def asked_for(db: Database) -> str:
    row = db.execute(
        """insert into public.worker_starts (target_worker, state, provider, pod_id)
           values (%s, 'requested', 'serverless', 'request-1') returning id::text""",
        (TARGET,),
    ).fetchone()
    assert row
    return str(row["id"])


def start_of(db: Database, start_id: str) -> str:
    row = db.execute("select state from public.worker_starts where id = %s", (start_id,)).fetchone()
    assert row
    return str(row["state"])


def test_a_request_drains_the_queue_and_another_one_does_so_again(db: Database, user: User, drain: Drain) -> None:
    for waiting in (3, 1):
        jobs = [user.insert(target_worker=TARGET) for _ in range(waiting)]
        start_id = asked_for(db)
        assert ask(drain, start_id=start_id, target_worker=TARGET)["jobs"] == waiting
        assert {status_of(db, job) for job in jobs} == {"completed"}
        assert start_of(db, start_id) == "ended"
    assert ask(drain)["jobs"] == 0
    left = {thread.name for thread in threading.enumerate()}
    assert not left & {"house", "wakeup", "progress", "lifeline"}


def test_its_time_may_be_limited_and_what_is_not_done_goes_back(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    job = user.insert(target_worker=TARGET)
    answer = ask(make_drain(supabase, step_seconds=0.5, shutdown_grace_seconds=0.2), seconds=1)
    assert answer["jobs"] == 1
    assert status_of(db, job) == "queued"


def test_a_gpu_that_is_unusable_asks_for_another_container(db: Database, user: User, drain: Drain) -> None:
    job, start_id = user.insert(target_worker=TARGET, prompt="raise GpuUnusable"), asked_for(db)
    answer = ask(drain, start_id=start_id)
    assert answer["refresh_worker"] is True
    assert answer["error"].startswith("gpu_unusable: ")
    assert status_of(db, job) == "queued"
    assert start_of(db, start_id) == "ended", "the database may ask for another one"


@pytest.mark.parametrize("wish", [{"target_worker": "another"}, {"start_id": "x"}, {"seconds": "long"}, {"seconds": 0}])
def test_a_request_that_makes_no_sense_is_told_so(db: Database, user: User, drain: Drain, wish: dict[str, Any]) -> None:
    job = user.insert(target_worker=TARGET)
    assert ask(drain, **wish)["error"].startswith("invalid_request: ")
    assert status_of(db, job) == "queued"


def test_with_the_real_sdk_and_the_bundled_model(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    job = user.insert(target_worker=TARGET)
    command = [sys.executable, "-u", str(ROOT / "handler.py"), "--test_input", json.dumps({"input": {"start_id": str(uuid4())}})]
    env = environ(supabase, target_worker=TARGET, idle_exit_minutes=0.5 / 60)
    done = preloaded.run(command, env=env)
    assert done.returncode == 0, done.stderr
    assert "'jobs': 1" in done.stdout
    assert status_of(db, job) == "completed"


def test_sigterm_gives_the_job_back_at_once(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    job = user.insert(target_worker=TARGET, steps=100, width=256, height=256)
    process = preloaded.Popen(
        [sys.executable, "-u", str(ROOT / "handler.py"), "--test_input", '{"input": {"seconds": 60}}'],
        env=environ(supabase, target_worker=TARGET, shutdown_grace_seconds=0.5),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(db, "(select status = 'processing' from public.jobs where id = %s)", job["id"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=TIMEOUT_SECONDS) == 0
    row = db.execute("select status, attempts from public.jobs where id = %s", (job["id"],)).fetchone()
    assert row == {"status": "queued", "attempts": 0}


def test_what_is_set_wrong_ends_with_status_1_and_words() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "handler.py")], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "settings_invalid" in done.stderr
