"""Whatever ends a worker process, its supervisor gives back what it held, at once and uncharged, and starts another."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.supervisor import SILENCE_SECONDS, Child, gpus
from tests import preloaded
from tests.integration.conftest import Database, User, wait_until
from tests.processes import STUB, SUPERVISED_STUB, WorkerProcess, environ

TARGET = "supervised"


@pytest.fixture
def worker(supabase: EmbeddedSupabase) -> Iterator[WorkerProcess]:
    # a lease far longer than the test: what comes back comes from the supervisor
    with WorkerProcess(
        supabase,
        SUPERVISED_STUB,
        target_worker=TARGET,
        lease_seconds=600,
        stub_step_seconds=0.05,
        step_timeout_seconds=2,
        worker_id="w",
    ) as running:
        yield running


def row_of(db: Database, job_id: str) -> dict[str, Any]:
    row = db.execute(
        "select j.*, l.claims, l.crashes from public.jobs j join private.leases l on l.job_id = j.id where j.id = %s", (job_id,)
    ).fetchone()
    assert row
    return row


def test_a_killed_worker_costs_its_job_nothing_but_the_time(db: Database, user: User, worker: WorkerProcess) -> None:
    first = worker.wait_for("worker_started")["pid"]
    job = user.insert(target_worker=TARGET, steps=60)
    worker.wait_for("job_claimed", job_id=job["id"])
    os.kill(first, signal.SIGKILL)
    assert worker.wait_for("worker_died")["reason"] == "killed by SIGKILL"
    worker.wait_for("job_given_back", job_id=job["id"], verdict="ok")
    worker.wait_for("job_completed", job_id=job["id"])
    row = row_of(db, job["id"])
    assert (row["status"], row["attempts"], row["claims"]) == ("completed", 1, 2)
    [image] = user.images(job["id"])
    assert image["path"].split("/")[-1] == "2-0.png", "the second lease has objects of its own"


def test_the_operator_sees_what_happened_to_the_worker(db: Database, worker: WorkerProcess) -> None:
    os.kill(worker.wait_for("worker_started")["pid"], signal.SIGKILL)
    worker.wait_for("worker_died")
    worker.wait_for_another("worker_ready")
    seen = db.execute("select error, failed_at > started_at as failed from public.workers where id = 'w'").fetchall()
    assert seen == [{"error": "worker_died: killed by SIGKILL", "failed": True}]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("die", "killed by SIGKILL"), ("hang", "killed by SIGKILL"), ("raise GpuUnusable", "exit status 70")],
)
def test_a_job_that_two_workers_die_of_is_poison(db: Database, user: User, worker: WorkerProcess, prompt: str, reason: str) -> None:
    job = user.insert(target_worker=TARGET, prompt=prompt)
    innocent = user.insert(target_worker=TARGET)
    worker.wait_for("job_completed", job_id=innocent["id"])
    row = row_of(db, job["id"])
    assert (row["status"], row["error_code"], row["crashes"], row["claims"]) == ("failed", "poison_job", 2, 2)
    assert row["error_message"] == "This job stopped two workers in a row."
    assert [event["reason"] for event in worker.events if event["event"] == "worker_died"] == [reason, reason]
    after = row_of(db, innocent["id"])
    assert (after["status"], after["attempts"], after["crashes"]) == ("completed", 1, 0), "what waited beside it is not charged"


def test_the_job_on_the_gpu_is_charged_and_not_the_one_before_it(db: Database, user: User, worker: WorkerProcess) -> None:
    """Both change places within the lifeline's second; the first is still being uploaded when the second kills the worker."""
    innocent = user.insert(target_worker=TARGET, steps=2, batch_size=6)
    poison = user.insert(target_worker=TARGET, prompt="die")
    for job in (innocent, poison):  # by its row: the worker may be killed between ending the first and saying so
        wait_until(db, "select completed_at is not null from public.jobs where id = %s", job["id"])
    assert row_of(db, innocent["id"])["status"] == "completed"
    assert row_of(db, innocent["id"])["crashes"] == 0
    assert (row_of(db, poison["id"])["error_code"], row_of(db, poison["id"])["claims"]) == ("poison_job", 2)


def test_a_hung_gpu_is_noticed_by_the_steps_that_do_not_come(db: Database, user: User, worker: WorkerProcess) -> None:
    job = user.insert(target_worker=TARGET, prompt="hang")
    assert worker.wait_for("worker_killed")["reason"] == "gpu_hung"
    worker.wait_for("job_given_back", job_id=job["id"], crashed=True)


def test_a_stopped_process_is_noticed_by_its_silence() -> None:
    child = Child(None, "w")
    child.ready, child.heard_at, child.stepped_at = True, 100.0, 100.0
    assert child.fault(100 + SILENCE_SECONDS, step_timeout_seconds=1) is None
    assert child.fault(101 + SILENCE_SECONDS, step_timeout_seconds=1) == "silent"
    child.ready = False
    assert child.fault(1e9, step_timeout_seconds=1) is None, "while it loads its model nothing can be asked of it"


def test_sigterm_goes_through_to_the_worker(db: Database, user: User, worker: WorkerProcess) -> None:
    job = user.insert(target_worker=TARGET, steps=100)
    worker.wait_for("job_claimed", job_id=job["id"])
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for("worker_draining")
    assert worker.wait_for_exit() == 0
    row = row_of(db, job["id"])
    assert (row["status"], row["attempts"], row["crashes"]) in {("queued", 0, 0), ("completed", 1, 0)}


def test_what_a_drained_worker_could_not_end_is_given_back(db: Database, user: User, supabase: EmbeddedSupabase) -> None:
    slow: dict[str, Any] = {"lease_seconds": 600, "stub_step_seconds": 0.05, "shutdown_grace_seconds": 1, "prefetch_seconds": "inf"}
    with WorkerProcess(supabase, SUPERVISED_STUB, target_worker=TARGET, **slow) as worker:
        job, waiting = user.insert(target_worker=TARGET, prompt="hang"), user.insert(target_worker=TARGET)
        worker.wait_for("job_claimed", job_id=waiting["id"])
        wait_until(db, "select count(*) = 2 from public.jobs where status = 'processing'")
    for row in (row_of(db, job["id"]), row_of(db, waiting["id"])):
        assert (row["status"], row["attempts"], row["crashes"]) == ("queued", 0, 0)


def test_a_job_that_waits_for_the_gpu_can_be_cancelled(db: Database, user: User, worker: WorkerProcess) -> None:
    painting = user.insert(target_worker=TARGET, steps=100)
    worker.wait_for("job_claimed", job_id=painting["id"])
    waiting = user.insert(target_worker=TARGET)
    worker.wait_for("job_claimed", job_id=waiting["id"])
    user.client.table("jobs").update({"cancel_requested_at": "now"}).eq("id", waiting["id"]).execute()
    worker.wait_for("job_cancelled", job_id=waiting["id"])
    assert row_of(db, painting["id"])["status"] == "processing"


def test_a_second_sigterm_ends_it_at_once_and_gives_the_job_back(db: Database, user: User, supabase: EmbeddedSupabase) -> None:
    with WorkerProcess(
        supabase, SUPERVISED_STUB, target_worker=TARGET, stub_step_seconds=1, shutdown_grace_seconds=50, lease_seconds=600
    ) as worker:
        job = user.insert(target_worker=TARGET, steps=100)
        worker.wait_for("job_claimed", job_id=job["id"])
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("worker_draining")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("job_given_back", job_id=job["id"], verdict="ok")
        worker.wait_for_exit()
    assert (row_of(db, job["id"])["status"], row_of(db, job["id"])["attempts"]) == ("queued", 0)


def test_a_worker_whose_supervisor_is_gone_drains_and_ends(db: Database, user: User, supabase: EmbeddedSupabase) -> None:
    with WorkerProcess(supabase, SUPERVISED_STUB, target_worker=TARGET) as worker:
        worker.process.kill()
        worker.wait_for("worker_drained")
        worker.wait_for_exit()


def test_there_is_one_process_for_each_gpu(db: Database, user: User, supabase: EmbeddedSupabase) -> None:
    with WorkerProcess(supabase, SUPERVISED_STUB, target_worker=TARGET, cuda_visible_devices="0,1", worker_id="host") as worker:
        for name in ("host-gpu0", "host-gpu1"):
            worker.wait_for("worker_ready", worker_id=name)
        started = [event["gpu"] for event in worker.events if event["event"] == "worker_started"]
    assert started == ["0", "1"]


def test_a_gpu_on_which_no_worker_comes_up_is_given_up(supabase: EmbeddedSupabase) -> None:
    environment = environ(supabase, target_worker=TARGET, stub_dies_at_start=1)
    done = preloaded.run(SUPERVISED_STUB, env=environment)
    assert done.returncode == 70
    assert done.stderr.count("worker_started") == 5
    assert "gpu_given_up" in done.stderr


@pytest.mark.parametrize(
    ("visible", "expected"), [("0", ["0"]), ("0,3", ["0", "3"]), ("GPU-abc", ["GPU-abc"]), ("", []), ("-1", [])]
)
def test_cuda_visible_devices_is_respected(visible: str, expected: list[str]) -> None:
    assert gpus({"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_without_a_supervisor_a_worker_is_alone(supabase: EmbeddedSupabase) -> None:
    with WorkerProcess(supabase, STUB, target_worker=TARGET) as worker:
        assert not [event for event in worker.events if event["event"] == "worker_started"]
