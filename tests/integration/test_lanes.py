"""While one job paints, the next is prepared and the last delivered. Each job stands still where the test says."""

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from ourvidz_sdxl import wakeup
from ourvidz_sdxl.encode import EncodedFile
from ourvidz_sdxl.engine import OnStep
from ourvidz_sdxl.errors import GpuUnusable, OutOfMemory
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.loop import MAX_DELIVERIES, Worker
from ourvidz_sdxl.metrics import Wake
from ourvidz_sdxl.plan import Plan
from ourvidz_sdxl.settings import Settings
from tests.integration.conftest import Database, User
from tests.pace import TIMEOUT_SECONDS
from tests.processes import environ
from tests.stub_worker import StubEngine

TARGET = "lanes"


class Stage:
    """Where jobs stand still: each says that it is there, and goes on when it may."""

    def __init__(self) -> None:
        self._there: dict[str, threading.Event] = {}
        self._may_go: dict[str, threading.Event] = {}

    def hold(self, job: str) -> None:
        self._there.setdefault(job, threading.Event()).set()
        assert self._may_go.setdefault(job, threading.Event()).wait(TIMEOUT_SECONDS), f"{job} was forgotten here"

    def wait_for(self, job: str) -> None:
        assert self._there.setdefault(job, threading.Event()).wait(TIMEOUT_SECONDS), f"{job} never came here"

    def let(self, *jobs: str) -> None:
        for job in jobs:
            self._may_go.setdefault(job, threading.Event()).set()


class Held(StubEngine):
    """An engine, and the storage behind it, in which each job waits to be let: by its prompt, and by its id in delivery."""

    def __init__(self) -> None:
        super().__init__(0)
        self.encoding, self.on_gpu, self.delivery = Stage(), Stage(), Stage()
        self.faulty: set[str] = set()
        self.unprepared = 3
        self.prepared = threading.Event()
        self.worker: Worker | None = None

    def warm_up(self) -> bool:
        assert self.worker
        assert not self.worker._held(), "a job comes first"
        self.unprepared -= 1
        if self.unprepared == 0:
            self.prepared.set()
        return self.unprepared > 0

    def encode_prompts(self, plan: Plan) -> None:
        self.encoding.let(plan.prompt)
        self.encoding.hold(plan.prompt)
        self._break(plan)

    def paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep, *, frugal: bool = False) -> Sequence[Image.Image]:
        self.on_gpu.hold(plan.prompt)
        self._break(plan)
        return super().paint(plan, reference, on_step, frugal=frugal)

    def _break(self, plan: Plan) -> None:
        if plan.prompt in self.faulty:
            raise GpuUnusable("planted")


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def worker(supabase: EmbeddedSupabase, db: Database, held: Held, monkeypatch: pytest.MonkeyPatch, request: Any) -> Worker:
    """Of which nothing happens by a timer: what is claimed is claimed because a wake said so."""
    monkeypatch.setattr(wakeup, "SECOND_LOOK_SECONDS", 3600)
    slow = {"lease_seconds": 3600, "poll_interval_seconds": 3600, "poll_interval_connected_seconds": 3600}
    settings = Settings.from_env(environ(supabase, target_worker=TARGET, **slow, **getattr(request, "param", {})))
    worker = held.worker = Worker(settings, held, None, None)
    upload = worker._storage.upload

    def upload_when_let(bucket: str, path: str, file: EncodedFile) -> None:
        held.delivery.hold(path.split("/")[1])
        upload(bucket, path, file)

    monkeypatch.setattr(worker._storage, "upload", upload_when_let)
    return worker


@pytest.fixture
def jobs(db: Database, user: User) -> list[str]:
    """Ids; their prompts are "0", "1", … They wait before the worker is there, so that no insert wakes it."""
    return [user.insert(target_worker=TARGET, prompt=str(number))["id"] for number in range(MAX_DELIVERIES + 2)]


@pytest.fixture
def running(jobs: list[str], worker: Worker, held: Held) -> Iterator[Any]:
    """The future exit code of the worker. What stands still in the end may go."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(worker.run)
        assert worker._wakeup.wait_connected(TIMEOUT_SECONDS)
        yield future
        worker.stop()
        held.on_gpu.let(*map(str, range(len(jobs))))
        held.delivery.let(*jobs)
        future.result(TIMEOUT_SECONDS)


def paints_and_is_nearly_done(held: Held, job: str) -> None:
    """As the pace of its steps would say, of which none is taken while it stands still."""
    held.on_gpu.wait_for(job)
    assert held.worker
    held.worker._gpu.nearly_free = True
    held.worker._wakeup.wake(Wake.LANE)


def test_while_one_job_paints_the_next_is_claimed_and_its_prompt_encoded(held: Held, running: Any, jobs: list[str]) -> None:
    paints_and_is_nearly_done(held, "0")
    held.encoding.wait_for("1")


def test_while_one_is_delivered_the_next_paints_and_a_third_is_prepared(
    held: Held, running: Any, user: User, jobs: list[str], worker: Worker
) -> None:
    paints_and_is_nearly_done(held, "0")
    held.encoding.wait_for("1")
    held.on_gpu.let("0")
    held.delivery.wait_for(jobs[0])
    paints_and_is_nearly_done(held, "1")
    held.encoding.wait_for("2")
    assert {str(lease.job_id) for lease in worker._held()} == set(jobs[:3]), "a job in delivery is given back with the others"
    held.delivery.let(jobs[0])


def test_the_next_is_left_to_others_until_the_gpu_is_nearly_free(
    held: Held, running: Any, user: User, worker: Worker, jobs: list[str]
) -> None:
    held.on_gpu.wait_for("0")
    assert worker._room_in_seconds() == math.inf
    assert user.job(jobs[1])["status"] == "queued"
    held.on_gpu.let("0")
    held.on_gpu.wait_for("1")


@pytest.mark.parametrize("worker", [{"max_concurrent_jobs": 1}], indirect=True)
def test_while_deliveries_pile_up_nothing_new_is_claimed(worker: Worker, held: Held, user: User, jobs: list[str]) -> None:
    held.on_gpu.let(*map(str, range(len(jobs))))
    for job in jobs[:MAX_DELIVERIES]:
        worker._claim_what_fits()
        held.delivery.wait_for(job)
    next_one = jobs[MAX_DELIVERIES]
    worker._claim_what_fits()
    assert user.job(next_one)["status"] == "queued"

    held.delivery.let(jobs[0])
    while len(worker._held()) == MAX_DELIVERIES:
        worker._wakeup.wait(TIMEOUT_SECONDS)
    assert user.job(jobs[0])["status"] == "completed"
    worker._claim_what_fits()
    held.delivery.wait_for(next_one)
    held.delivery.let(*jobs)
    while worker._held():
        worker._wakeup.wait(TIMEOUT_SECONDS)


def test_a_gpu_that_fails_beside_a_painting_charges_the_painting_alone(
    held: Held, running: Any, db: Database, jobs: list[str]
) -> None:
    held.faulty = {"0", "1"}
    paints_and_is_nearly_done(held, "0")
    held.encoding.wait_for("1")
    held.on_gpu.let("0")
    assert running.result(TIMEOUT_SECONDS) is ExitCode.BROKEN
    rows = db.execute(
        "select status, attempts, crashes, claims from public.jobs join private.leases on job_id = id order by prompt limit 3"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [("queued", 0, 1, 1), ("queued", 0, 0, 1), ("queued", 0, 0, 0)]


def test_for_an_unusable_gpu_nothing_is_claimed(worker: Worker, user: User, jobs: list[str]) -> None:
    worker._gpu.unusable_because = "planted"
    worker._claim_what_fits()
    assert user.job(jobs[0])["status"] == "queued"


def test_what_the_usual_jobs_need_is_prepared_once_when_no_job_is_there(
    held: Held, running: Any, user: User, jobs: list[str]
) -> None:
    held.on_gpu.wait_for("0")
    assert held.unprepared == 3, "not while jobs wait"
    held.on_gpu.let(*map(str, range(len(jobs))))
    held.encoding.let(*map(str, range(len(jobs))))
    held.delivery.let(*jobs)
    assert held.prepared.wait(TIMEOUT_SECONDS)
    held.worker.stop()  # type: ignore[union-attr]
    assert running.result(TIMEOUT_SECONDS) is ExitCode.DRAINED
    assert held.unprepared == 0, "never again"
    assert {user.job(job)["status"] for job in jobs} == {"completed"}


def test_nothing_is_prepared_before_the_queue_was_seen_to_be_empty(
    worker: Worker, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that has just ended may have left no room, so that nobody asked what waits."""
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_room_in_seconds", lambda: 0.5)
        worker._claim_what_fits()
    assert worker._warmed_up()
    assert held.unprepared == 3
    worker._claim_what_fits()
    assert not worker._warmed_up()
    assert held.unprepared == 2


@pytest.mark.parametrize(("fault", "code"), [(GpuUnusable("planted"), ExitCode.BROKEN), (OutOfMemory("planted"), ExitCode.DRAINED)])
def test_a_fault_while_preparing_ends_the_worker_only_if_the_gpu_is_lost(
    worker: Worker, held: Held, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: ExitCode
) -> None:
    tried = threading.Event()

    def fail() -> bool:
        tried.set()
        raise fault

    monkeypatch.setattr(held, "warm_up", fail)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(worker.run)
        assert tried.wait(TIMEOUT_SECONDS)
        if code is ExitCode.DRAINED:
            worker.stop()
        assert running.result(TIMEOUT_SECONDS) is code
