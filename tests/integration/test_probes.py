"""/health, /ready and /metrics: one port a host, off unless asked for, and the truth about what the worker does."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ourvidz_sdxl.host_probes import STILL_SECONDS, HostProbes
from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.loop import Worker
from ourvidz_sdxl.queue_figures import QueueFigures
from ourvidz_sdxl.settings import Settings
from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Database, User
from tests.pace import TIMEOUT_SECONDS
from tests.processes import REAL, STUB, SUPERVISED_STUB, WorkerProcess, environ
from tests.stub_worker import StubEngine

TARGET = "probed"
PROBED: dict[str, Any] = {"target_worker": TARGET, "http_port": 0, "prefetch_seconds": "inf"}
Sample = tuple[str, dict[str, str], float]


class Probed:
    """A worker with its port."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.port = worker.wait_for("probes_listening")["port"]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=TIMEOUT_SECONDS)

    def samples(self) -> list[Sample]:
        families = text_string_to_metric_families(self.get("/metrics").text)
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Over all samples of that name with at least these labels."""
        return sum(v for n, has, v in self.samples() if n == name and labels.items() <= has.items())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.get("/ready").text
            time.sleep(0.05)


@contextmanager
def probed(supabase: EmbeddedSupabase, command: list[str] = STUB, **settings: object) -> Iterator[Probed]:
    with WorkerProcess(supabase, command, **(PROBED | settings)) as worker:
        yield Probed(worker)


def test_without_the_setting_nothing_listens(supabase: EmbeddedSupabase) -> None:
    with WorkerProcess(supabase, SUPERVISED_STUB, target_worker=TARGET) as worker:
        family = [psutil.Process(pid) for pid in (worker.process.pid, worker.wait_for("worker_started")["pid"])]
        assert [c for one in family for c in one.net_connections() if c.status == psutil.CONN_LISTEN] == []


def test_only_this_machine_is_answered_unless_the_operator_says_otherwise(supabase: EmbeddedSupabase) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with probed(supabase, http_host=host) as worker:
            bound = psutil.Process(worker.worker.process.pid).net_connections()
            assert {c.laddr.ip for c in bound if c.status == psutil.CONN_LISTEN} == {host}
            assert worker.get("/health").status_code == 200
    assert Settings.from_env(environ(supabase)).http_host == "127.0.0.1"


def test_a_port_that_is_taken_ends_the_worker_in_words(supabase: EmbeddedSupabase) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with WorkerProcess(supabase, REAL, wait_for_ready=False, http_port=port) as worker:
            assert worker.wait_for_exit() == 1
        assert f"HTTP_PORT {port}: Address already in use" in "".join(worker.lines)


def test_a_job_leaves_its_figures(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with probed(supabase, stub_step_seconds=0.02, slow_generation_seconds=0.1) as worker:
        job = user.insert(target_worker=TARGET, batch_size=3, steps=10)
        worker.worker.wait_for("job_completed", job_id=job["id"])
        worker.wait_until(lambda: worker.value("sdxl_jobs_total", outcome="completed") == 1)
        failing = user.insert(target_worker=TARGET, prompt="raise OutOfMemory")
        worker.worker.wait_for("generation_error", job_id=failing["id"])
        worker.wait_until(lambda: worker.value("sdxl_jobs_total", outcome="failed") == 1)

        samples = worker.samples()
        counted = {(n, *sorted(has.values())): v for n, has, v in samples if not n.endswith(("_bucket", "_sum"))}
        assert counted["sdxl_jobs_total", "", "completed", "sdxl_image_fast"] == 1
        assert counted["sdxl_jobs_total", "failed", "out_of_memory", "sdxl_image_fast"] == 1
        assert counted["sdxl_images_total", "sdxl_image_fast"] == 3
        assert counted["sdxl_step_seconds_count",] == 9, "the first step is not counted"
        assert counted["sdxl_generation_time_seconds_count", "3", "none", "sdxl_image_fast"] == 1
        assert counted["sdxl_queue_wait_seconds_count", "sdxl_image_fast"] == 2
        stages = {key[1]: value for key, value in counted.items() if key[0] == "sdxl_stage_seconds_count"}
        assert stages == {
            "claim": 2, "prepare": 2, "gpu_wait": 2, "paint": 1, "decode": 1, "encode": 3, "upload": 3, "finish": 2
        }  # fmt: skip
        assert counted["sdxl_quality_events_total", "slow_generation"] == 1
        assert counted["sdxl_quality_events_total", "generation_error"] == 1
        assert counted["sdxl_wakes_total", "realtime"] == 2
        assert counted["sdxl_realtime_connected",] == counted["sdxl_worker_ready",] == 1
        painted = worker.value("sdxl_stage_seconds_sum", stage="paint")
        assert 0.2 <= painted <= worker.value("sdxl_gpu_busy_seconds_total") < painted + 1
        row = user.job(job["id"])
        assert worker.value("sdxl_generation_time_seconds_sum") == pytest.approx(row["metrics"]["generation_time"], abs=0.001)
        told = worker.get("/metrics").text
        assert not [secret for secret in (job["id"], user.id, "red circle", supabase.secret_key) if secret in told]


def test_the_queue_is_told_for_the_workers_own_target(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with probed(supabase, SUPERVISED_STUB, stub_step_seconds=0.01) as worker:
        for prompt in ("busy", "busy", "a cat"):
            user.insert(target_worker=TARGET, prompt=prompt)
        for _ in range(2):
            user.insert(target_worker="another")
        worker.wait_until(lambda: worker.value("sdxl_lanes_occupied_jobs") == 2)
        worker.wait_until(lambda: worker.value("sdxl_queue_live_workers") == 1)  # asked in the background
        told = {
            name: (has, value) for name, has, value in worker.samples() if name.startswith("sdxl_queue_") and "wait_s" not in name
        }
        waited = told.pop("sdxl_queue_oldest_waiting_seconds")[1]
        assert {name: value for name, (_, value) in told.items()} == {
            "sdxl_queue_waiting_jobs": 1,
            "sdxl_queue_delayed_jobs": 0,
            "sdxl_queue_running_jobs": 2,
            "sdxl_queue_live_workers": 1,
        }
        assert 0 < waited < 60
        assert {has["target_worker"] for has, _ in told.values()} == {TARGET}
        for target, jobs in ((TARGET, 1), ("another", 2), ("nobodys", 0)):
            figures = QueueFigures(Settings.from_env(environ(supabase, target_worker=target)))
            assert [row.get("waiting", 0) for row in figures._ask_database()] == [jobs]


def test_the_larger_the_fleet_the_less_often_each_host_asks(supabase: EmbeddedSupabase) -> None:
    clock, asked = Clock(), threading.Semaphore(0)

    def ask() -> list[dict[str, Any]]:
        asked.release()
        return [{"target_worker": "sdxl", "waiting": 5, "live_workers": 100}]

    figures = QueueFigures(Settings.from_env(environ(supabase)), ask, clock)

    def waiting() -> list[float]:
        return [one.value for family in figures.collect() for one in family.samples if one.name == "sdxl_queue_waiting_jobs"]

    def asks_after(seconds: float) -> bool:
        clock.now += seconds
        waiting()
        return asked.acquire(timeout=0.5)

    assert waiting() == [], "a scrape does not wait for the database"
    assert asked.acquire(timeout=TIMEOUT_SECONDS)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while waiting() != [5]:
        assert time.monotonic() < deadline
    assert not asks_after(149), "100 workers: every 150 s"
    assert asks_after(1)
    assert not asks_after(100)


def test_figures_that_are_old_are_not_told(supabase: EmbeddedSupabase) -> None:
    clock, answers = Clock(), [{"target_worker": "sdxl", "waiting": 5, "live_workers": 1}]

    def ask() -> list[dict[str, Any]]:
        if not answers:
            raise httpx.ConnectError("away")
        return [answers.pop()]

    figures = QueueFigures(Settings.from_env(environ(supabase)), ask, clock)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not [*figures.collect()]:
        assert time.monotonic() < deadline
    clock.now += 60
    assert [*figures.collect()]
    clock.now += 1
    assert [*figures.collect()] == []


def test_calls_that_are_made_again_are_counted(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with FaultProxy(supabase.url) as proxy, probed(supabase, supabase_url=proxy.url) as worker:
        proxy.answer("POST /storage/v1/object/sdxl", 503, times=1)
        proxy.answer("POST /rest/v1/rpc/finish_job", 503, times=2)
        job = user.insert(target_worker=TARGET)
        worker.worker.wait_for("job_completed", job_id=job["id"])
        assert worker.value("sdxl_supabase_retries_total", call="upload") == 1
        assert worker.value("sdxl_supabase_retries_total", call="finish_job") == 2
        assert worker.value("sdxl_supabase_failures_total") == 0
        lost = user.insert(target_worker=TARGET, reference_image_path=f"{user.id}/gone.png", reference_strength=0.5)
        worker.worker.wait_for("generation_error", job_id=lost["id"])
        assert worker.value("sdxl_supabase_failures_total", call="download", reason="refused") == 1


def test_lanes_show_what_is_going_on(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with probed(supabase, stub_step_seconds=0.01) as worker:
        jobs = [user.insert(target_worker=TARGET, prompt="busy") for _ in range(2)]
        worker.wait_until(lambda: worker.value("sdxl_lanes_occupied_jobs") == 2)
        assert {lane: worker.value("sdxl_lanes_occupied_jobs", lane=lane) for lane in ("prepare", "paint", "deliver")} == {
            "prepare": 1,
            "paint": 1,
            "deliver": 0,
        }
        before = worker.value("sdxl_gpu_busy_seconds_total")
        worker.wait_until(lambda: worker.value("sdxl_gpu_busy_seconds_total") > before + 0.2)  # it grows while a job paints
        for job in jobs:
            user.client.table("jobs").update({"cancel_requested_at": "now()"}).eq("id", job["id"]).execute()
        worker.wait_until(lambda: worker.value("sdxl_jobs_total", outcome="cancelled", error_code="") == 2)
        assert worker.value("sdxl_lanes_occupied_jobs") == 0


def test_it_is_not_ready_before_its_model_is(supabase: EmbeddedSupabase) -> None:
    settings: dict[str, Any] = {"model_path": "/no/such.safetensors", "model_retry_seconds": 600, "http_port": 0}
    with WorkerProcess(supabase, REAL, wait_for_ready=False, **settings) as process:
        worker = Probed(process)
        process.wait_for("model_not_loaded")
        answer = worker.get("/ready")
        assert (answer.status_code, answer.json()["problems"]) == (503, ["GPU 0: the model is being loaded"])
        assert worker.get("/health").status_code == 200, "it is nobody's business to start it again"


def test_it_is_not_ready_while_supabase_is_away(supabase: EmbeddedSupabase) -> None:
    # a heartbeat every 2.5 s
    with FaultProxy(supabase.url) as proxy, probed(supabase, supabase_url=proxy.url, lease_seconds=10) as worker:
        assert worker.get("/ready").json() == {"ok": True, "problems": []}
        proxy.cut_off("rest")
        worker.wait_until(lambda: worker.get("/ready").status_code == 503)
        assert worker.get("/ready").json()["problems"][0].startswith("Supabase has not answered for ")
        assert worker.get("/health").status_code == 200
        proxy.heal()
        worker.wait_until(lambda: worker.get("/ready").status_code == 200)


def test_it_is_not_ready_while_it_drains(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with probed(supabase, stub_step_seconds=0.05, shutdown_grace_seconds=8) as worker:
        job = user.insert(target_worker=TARGET, steps=60)
        worker.worker.wait_for("job_claimed", job_id=job["id"])
        worker.worker.process.send_signal(signal.SIGTERM)
        worker.worker.wait_for("worker_draining")
        answer = worker.get("/ready")
        assert (answer.status_code, answer.json()["problems"]) == (503, ["this worker is draining"])


def test_several_gpus_answer_as_one_host(
    supabase: EmbeddedSupabase, db: Database, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with probed(supabase, SUPERVISED_STUB, stub_step_seconds=0.05) as worker:
        worker.wait_until(lambda: worker.value("sdxl_worker_ready") == 2)
        for job in [user.insert(target_worker=TARGET, steps=8) for _ in range(6)]:
            worker.worker.wait_for("job_completed", job_id=job["id"])
        worker.wait_until(lambda: worker.value("sdxl_jobs_total") == 6)
        for gpu in "01":
            assert worker.value("sdxl_jobs_total", gpu=gpu) > 0
            assert worker.value("sdxl_worker_up", gpu=gpu) == 1
        assert worker.get("/metrics").text.count("# TYPE sdxl_jobs_total counter") == 1, "one family, though two workers have it"

        dead = worker.worker.wait_for("worker_started", gpu="1")["pid"]
        os.kill(dead, signal.SIGKILL)
        worker.worker.wait_for("worker_died")
        worker.wait_until(lambda: worker.value("sdxl_worker_deaths_total", gpu="1", reason="died") == 1)
        assert worker.get("/ready").status_code == 200, "the other GPU takes jobs"
        worker.wait_until(lambda: worker.value("sdxl_worker_ready") == 2)  # its successor answers at the same place
        assert worker.value("sdxl_jobs_total", gpu="1") == 0, "whose counters begin anew, as Prometheus expects"


def test_a_host_without_a_worker_that_answers_is_healthy_and_not_ready(
    supabase: EmbeddedSupabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with probed(supabase, SUPERVISED_STUB) as worker:
        pid = worker.worker.wait_for("worker_started")["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            answer = worker.get("/ready")
            assert (answer.status_code, answer.json()["ok"]) == (503, False)
            assert "does not answer" in answer.json()["problems"][0]
            assert worker.get("/health").status_code == 200, "silent workers are the supervisor's to kill"
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(("path", "status"), [("/", 404), ("/metrics?x=1", 200), ("/healthz", 404)])
def test_other_paths(supabase: EmbeddedSupabase, path: str, status: int) -> None:
    with probed(supabase) as worker:
        assert worker.get(path).status_code == status


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_supervisor_that_stands_still_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    host = HostProbes([], clock=clock)
    host.beat()
    clock.now += STILL_SECONDS
    assert host.answers.health()[0] == []
    clock.now += 1
    assert host.answers.health()[0] == ["the supervisor's loop has stood still for 11 s"]
    assert host.answers.ready()[0] == ["no worker is left"]


def test_a_loop_that_stands_still_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"}
    worker = Worker(Settings.from_env(given), StubEngine(0), None, None)
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 149)
    assert worker.why_stuck() == []
    monkeypatch.setattr(time, "monotonic", lambda: began + 151)  # 30 s of the timer, and 120 for a step
    assert worker.why_stuck() == ["the loop has stood still for 151 s"]
