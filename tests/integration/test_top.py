"""`worker.py top`: the queue and the fleet in a real terminal; a Supabase that goes away, and comes back."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import httpx
import pytest
from postgrest.exceptions import APIError
from rich.console import Console
from supabase import Client

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from ourvidz_sdxl.top import View, in_words, span
from tests import preloaded
from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Database, User
from tests.pace import TIMEOUT_SECONDS
from tests.processes import environ

TARGET = "topped"
COMMAND = [sys.executable, str(ROOT / "worker.py"), "top"]


@pytest.fixture
def fleet(service: Client, db: Database, user: User) -> None:
    """Two jobs wait; one worker lives, one is gone, one failed."""
    db.execute("delete from public.workers where target_worker = %s", (TARGET,))
    facts = {"target_worker": TARGET, "host": "h", "version": "1.2.3", "gpu": "NVIDIA H100", "model": "lustify"}
    for name, state, more in (("alive", "ready", {}), ("silent", "ready", {}), ("broken", "failed", {"error": "model_missing: x"})):
        service.rpc("report_worker", {"p_worker": name, "p_state": state, "p_facts": facts | more}).execute()
    db.execute("update public.workers set last_seen_at = now() - interval '3 days' where id = 'silent'")
    for _ in range(2):
        user.insert(target_worker=TARGET)


def once(supabase: EmbeddedSupabase, **settings: object) -> subprocess.CompletedProcess[str]:
    env = environ(supabase, **settings) | {"COLUMNS": "160"}
    return preloaded.run([*COMMAND, "--once"], env=env)


def line(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


@pytest.mark.usefixtures("fleet")
def test_once_prints_the_queue_and_the_fleet(supabase: EmbeddedSupabase) -> None:
    done = once(supabase)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(rf"{TARGET}\s+2\s+0\s+0\s+1 ", line(done.stdout, TARGET)), "waiting, put off, running, live workers"
    assert re.search(r"ready\s+0\s+[\d.]+ s\s+NVIDIA H100\s+lustify\s+1\.2\.3", line(done.stdout, "alive"))
    assert re.search(r"gone\s+0\s+3 d", line(done.stdout, "silent"))
    assert re.search(r"failed .* model_missing: x", line(done.stdout, "broken"))


def test_without_supabase_it_says_so_and_fails(supabase: EmbeddedSupabase) -> None:
    done = once(supabase, supabase_url="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (1, "")
    assert "Supabase does not answer" in done.stdout


def test_a_wrong_key_is_said_in_words(supabase: EmbeddedSupabase) -> None:
    done = once(supabase, supabase_service_role_key="sb_secret_wrong")
    assert done.returncode == 1
    assert "run `worker.py doctor`" in done.stdout


class Terminal:
    """What a person would see, as far as it was written."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor, self.text = process, descriptor, ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                got = os.read(self._descriptor, 65536)
            except OSError:  # the other end is closed
                return
            self.text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", got.decode(errors="replace"))

    def wait_for(self, words: str) -> None:
        deadline, begin = time.monotonic() + TIMEOUT_SECONDS, len(self.text)
        while words not in self.text[begin:]:
            assert time.monotonic() < deadline, self.text[-2000:]
            time.sleep(0.02)


@contextmanager
def terminal(supabase: EmbeddedSupabase, **settings: object) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    env = environ(supabase, **settings) | {"TERM": "xterm", "COLUMNS": "160", "LINES": "30"}
    process = preloaded.Popen([*COMMAND, "--every", "0.2"], env=env, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait(TIMEOUT_SECONDS)
        os.close(ours)


@pytest.mark.usefixtures("fleet")
def test_it_follows_what_happens_and_survives_an_outage(supabase: EmbeddedSupabase, user: User, service: Client) -> None:
    with FaultProxy(supabase.url) as proxy, terminal(supabase, supabase_url=proxy.url) as screen:
        screen.wait_for("alive")
        assert f"{TARGET}  " in screen.text
        service.rpc("report_worker", {"p_worker": "another", "p_state": "starting", "p_facts": {
            "target_worker": TARGET, "host": "h", "version": "1"}}).execute()  # fmt: skip
        screen.wait_for("another")
        proxy.cut_off("rest")
        screen.wait_for("Supabase does not answer; what stands above is ")
        screen.wait_for("alive")  # what was seen last stays
        proxy.heal()
        screen.wait_for("Ctrl-C ends it.")
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(TIMEOUT_SECONDS) == 0


def drawn(view: View, *, height: int, width: int = 160) -> str:
    console = Console(file=StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def worker(name: str) -> dict[str, Any]:
    return {
        "id": name, "target_worker": "sdxl", "state": "ready", "running": 1, "seen_seconds_ago": 2.5, "gpu": None, "model": None,
        "version": "1", "error": None, "is_live": True, "engine": None, "engine_note": None,
    }  # fmt: skip


def queue_row() -> dict[str, Any]:
    return {
        "target_worker": "sdxl", "waiting": 0, "delayed": 0, "running": 0, "live_workers": 1, "starting_workers": 0,
        "oldest_waiting_seconds": None, "wait_seconds_p50": 1.5, "wait_seconds_p95": 12, "run_seconds_p50": 3,
        "completed_last_hour": 5, "failed_last_hour": 0, "cancelled_last_hour": 0, "runpod_error": None,
    }  # fmt: skip


def test_a_fleet_that_is_larger_than_the_screen_is_cut_with_a_word() -> None:
    view = View(workers=[worker(f"w{i}") for i in range(100)])
    told = drawn(view, height=24)
    assert len(told.splitlines()) <= 24
    shown = len(re.findall(r"\bw\d+\b", told))
    assert f"and {100 - shown} more" in told


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 240])
def test_columns_are_dropped_before_one_becomes_unreadable(width: int) -> None:
    """Who waits, who lives and what went wrong are always there, and whole but for texts that may be cut."""
    queue = queue_row() | {"waiting": 12345, "completed_last_hour": 1000, "oldest_waiting_seconds": 1e6}
    workers = [
        worker("a-host-with-a-long-name-gpu0") | {"error": "model_missing: there is nothing at /workspace", "engine": "fast, FP8"}
    ]
    told = drawn(View(queues=[queue], workers=workers), height=24, width=width)
    assert all(len(line) <= width for line in told.splitlines())
    for word in ("waiting", "12345", "workers", "state", "ready", "last error", "a-host-with-a-long", "model_missing: ther"):
        assert word in told, word
    names = ("put off", "wait p95", "cancelled/h", "GPU", "engine", "version")
    assert sum(name in told for name in names) == {60: 0, 80: 2, 100: 4, 120: 6, 160: 6, 240: 6}[width]


def test_nobody_and_nothing_are_words_too() -> None:
    told = drawn(View(), height=30)
    assert "no jobs yet" in told
    assert "no worker yet" in told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("x"), "Supabase does not answer"),
        (APIError({"code": "PGRST205"}), "run `supabase db push`"),
        (APIError({"code": "42501"}), "run `worker.py doctor`"),
        (APIError({"code": "503"}), "Supabase answers 503"),
    ],
)
def test_errors_are_said_in_words(error: APIError | httpx.HTTPError, words: str) -> None:
    assert words in in_words(error)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "-"), (0.04, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (259200, "3 d")],
)
def test_lengths_of_time(seconds: float | None, told: str) -> None:
    assert span(seconds) == told
