"""`worker.py exporter`: the queue's figures of all targets, with no worker anywhere, and the truth about the database."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ourvidz_sdxl import cli, queue_figures
from ourvidz_sdxl.exporter import PORT, Exporter, with_port
from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from ourvidz_sdxl.queue_figures import FAMILIES, QueueFigures
from ourvidz_sdxl.settings import Settings
from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Database, User
from tests.pace import TIMEOUT_SECONDS
from tests.processes import WorkerProcess, environ

COMMAND = [sys.executable, str(ROOT / "worker.py"), "exporter"]
NAMES = {name for name, _ in FAMILIES.values()}
UP = "sdxl_database_up"


def values(text: str) -> dict[tuple[str, str], float]:
    """Each sample by its name and its target, which is empty where it has none."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, sample.labels.get("target_worker", "")): sample.value for sample in samples}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def exporter_process(supabase: EmbeddedSupabase, **settings: object) -> WorkerProcess:
    return WorkerProcess(supabase, COMMAND, wait_for_ready=False, fresh=True, **({"http_port": 0} | settings))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_process_tells_all_targets_without_any_worker(
    supabase: EmbeddedSupabase, db: Database, user: User, end: signal.Signals
) -> None:
    for target, jobs in (("exported", 2), ("exported-too", 1)):
        for _ in range(jobs):
            user.insert(target_worker=target)
    db.execute("update public.jobs set run_at = now() + interval '1 hour' where target_worker = 'exported-too'")

    with exporter_process(supabase) as process:
        port = process.wait_for("probes_listening")["port"]
        url = f"http://127.0.0.1:{port}"

        def get(path: str) -> httpx.Response:
            return httpx.get(f"{url}{path}", trust_env=False, timeout=TIMEOUT_SECONDS)

        wait_until(lambda: get("/ready").status_code == 200)
        assert get("/ready").json() == get("/health").json() == {"ok": True, "problems": []}
        text = get("/metrics").text
        told = values(text)
        assert told[UP, ""] == 1
        for name, target, value in (
            ("sdxl_queue_waiting_jobs", "exported", 2),
            ("sdxl_queue_delayed_jobs", "exported", 0),
            ("sdxl_queue_running_jobs", "exported", 0),
            ("sdxl_queue_live_workers", "exported", 0),
            ("sdxl_queue_waiting_jobs", "exported-too", 0),
            ("sdxl_queue_delayed_jobs", "exported-too", 1),
            ("sdxl_queue_live_workers", "exported-too", 0),
        ):
            assert told[name, target] == value, (name, target)
        assert 0 < told["sdxl_queue_oldest_waiting_seconds", "exported"] < TIMEOUT_SECONDS
        assert {name for name, _ in told} == NAMES | {UP}, "and no worker's"
        assert not [secret for secret in (user.id, "red circle", supabase.secret_key) if secret in text]

        loaded = {mapped.path for mapped in psutil.Process(process.process.pid).memory_maps()}
        assert not [path for path in loaded if re.search(r"/torch/|/diffusers/|libcuda", path)], "no model, and no GPU"
        process.process.send_signal(end)
        assert process.wait_for_exit() == 0
    assert not [line for line in process.lines if "Traceback" in line]


def test_a_port_that_is_taken_ends_it_in_words(supabase: EmbeddedSupabase) -> None:
    with exporter_process(supabase) as first:
        port = first.wait_for("probes_listening")["port"]
        with exporter_process(supabase, http_port=port) as second:
            assert second.wait_for_exit() == 1
        assert f"HTTP_PORT {port}: Address already in use" in "".join(second.lines)


def test_without_http_port_it_is_the_port_that_the_help_names(
    supabase: EmbeddedSupabase, capsys: pytest.CaptureFixture[str]
) -> None:
    given = environ(supabase)
    assert with_port(Settings.from_env(given | {"HTTP_PORT": ""})).http_port == PORT
    assert with_port(Settings.from_env(given | {"HTTP_PORT": "8123"})).http_port == 8123
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    assert re.search(rf"exporter\s.*{PORT}", capsys.readouterr().out, re.DOTALL)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Asked:
    """The database that an exporter asks, and what it then answers. `away` is a database that does not answer."""

    def __init__(self, settings: Settings, ask: Callable[[], Any]) -> None:
        self.clock, self.looks = Clock(), threading.Semaphore(0)

        def counted() -> Any:
            try:
                return ask()
            finally:
                self.looks.release()

        self.exporter = Exporter(QueueFigures(settings, counted, self.clock, all_targets=True))

    def metrics(self) -> dict[tuple[str, str], float]:
        return values(self.exporter.answers.metrics())

    def look_after(self, seconds: float) -> None:
        """One more look, asked for by a scrape after so long."""
        self.clock.now += seconds
        self.metrics()
        assert self.looks.acquire(timeout=TIMEOUT_SECONDS)


def test_a_database_that_goes_away_and_comes_back(supabase: EmbeddedSupabase) -> None:
    away = threading.Event()
    rows: list[dict[str, Any]] = [
        {"target_worker": "one", "waiting": 4},
        {"target_worker": "two", "oldest_waiting_seconds": None},
    ]

    def ask() -> list[dict[str, Any]]:
        if away.is_set():
            raise httpx.ConnectError("away")
        return rows

    asked = Asked(Settings.from_env(environ(supabase)), ask)
    assert asked.exporter.answers.ready()[0] == ["the database has not been asked yet"]
    asked.look_after(0)
    wait_until(lambda: asked.metrics()[UP, ""] == 1)
    assert asked.exporter.answers.ready() == ([], {})
    everything = asked.metrics()
    assert everything["sdxl_queue_waiting_jobs", "one"] == 4
    assert everything["sdxl_queue_oldest_waiting_seconds", "two"] == 0

    away.set()
    asked.look_after(15)
    wait_until(lambda: asked.metrics()[UP, ""] == 0)
    assert asked.metrics() == everything | {(UP, ""): 0}, "what was seen 15 s ago"
    assert asked.exporter.answers.ready()[0] == ["the database could not be read: ConnectError"]
    assert asked.exporter.answers.health() == ([], {}), "to start it again would mend nothing"
    for seconds in (15, 15, 15):
        asked.look_after(seconds)
        assert asked.metrics() == everything | {(UP, ""): 0}
    asked.clock.now += 1
    assert asked.metrics() == {(UP, ""): 0}, "after a minute nothing is better than what was"

    away.clear()
    asked.look_after(15)
    wait_until(lambda: asked.metrics() == everything)


def test_one_process_asks_every_15_seconds_however_large_the_fleet(supabase: EmbeddedSupabase) -> None:
    asked = Asked(Settings.from_env(environ(supabase)), lambda: [{"target_worker": "one", "live_workers": 1000}])
    asked.look_after(0)
    wait_until(lambda: asked.metrics()[UP, ""] == 1)
    asked.look_after(15)


@pytest.mark.parametrize(("status", "body"), [(401, None), (200, {"a proxy's": "own page"})])
def test_an_answer_that_is_not_the_databases_is_none(
    supabase: EmbeddedSupabase, status: int, body: dict[str, object] | None
) -> None:
    with FaultProxy(supabase.url) as proxy:
        settings = Settings.from_env(environ(supabase, supabase_url=proxy.url))
        real = QueueFigures(settings, all_targets=True)
        asked = Asked(settings, real._ask_database)
        asked.look_after(0)
        wait_until(lambda: asked.metrics()[UP, ""] == 1)
        proxy.answer("GET /rest/v1/queue_health", status, body)
        asked.look_after(15)
        wait_until(lambda: asked.metrics()[UP, ""] == 0)


def test_targets_that_users_make_up_are_told_up_to_a_bound(
    supabase: EmbeddedSupabase, db: Database, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("made-up", "busiest", "busiest"):
        user.insert(target_worker=target)
    figures = QueueFigures(Settings.from_env(environ(supabase)), all_targets=True)
    everything = figures._ask_database()
    assert {"made-up", "busiest"} <= {row["target_worker"] for row in everything}
    bound = 1 + [row["target_worker"] for row in everything].index("busiest")
    monkeypatch.setattr(queue_figures, "MAX_TARGETS", bound)
    fewer = [row["target_worker"] for row in figures._ask_database()]
    assert fewer[-1] == "busiest", "after targets with workers, before those of which less waits"
    assert "made-up" not in fewer
