"""Real worker processes for tests, followed by their log events instead of by sleeping."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, embedded_supabase
from tests import preloaded
from tests.pace import TIMEOUT_SECONDS

TINY_MODEL = ROOT / "models" / "tiny-sdxl"
REAL = [sys.executable, str(ROOT / "worker.py"), "run"]
STUB = [sys.executable, "-m", "tests.stub_worker"]
SUPERVISED_STUB = [*STUB, "--supervised"]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for an embedded Supabase's data. Not in /tmp: under root, Postgres's own account must get to it."""
    (ROOT / ".local").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".local", prefix="scratch-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def scratch_supabase() -> Iterator[EmbeddedSupabase]:
    """An embedded Supabase of its own, thrown away at the end."""
    with scratch_folder() as folder, embedded_supabase(data_dir=folder) as running:
        yield running


def environ(supabase: EmbeddedSupabase, **settings: object) -> dict[str, str]:
    """A worker's environment: the bundled model, and settings by their lower-case names."""
    return os.environ | {
        "SUPABASE_URL": supabase.url,
        "SUPABASE_SERVICE_ROLE_KEY": supabase.secret_key,
        "MODEL_PATH": str(TINY_MODEL),
        "LOG_FORMAT": "json",
        **{name.upper(): str(value) for name, value in settings.items()},
    }


class WorkerProcess:
    """`with WorkerProcess(...) as worker:` starts it, waits until it is ready, and ends it with SIGTERM.

    `fresh` is for tests of the start itself: a process that imports everything it needs, as an operator's does.
    """

    def __init__(
        self,
        supabase: EmbeddedSupabase,
        command: list[str] = REAL,
        *,
        wait_for_ready: bool = True,
        fresh: bool = False,
        **settings: object,
    ) -> None:
        self._command = command
        self._start = subprocess.Popen if fresh else preloaded.Popen
        self._wait_for_ready = wait_for_ready
        self._environ = environ(supabase, **settings)
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self._arrived: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def __enter__(self) -> WorkerProcess:
        self.process = self._start(self._command, env=self._environ, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            if self._wait_for_ready:
                self.wait_for("worker_ready")
                self.wait_for("realtime_subscribed")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.wait_for_exit()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(timeout=5)
            if self.process.stderr:
                self.process.stderr.close()

    def wait_for_exit(self) -> int:
        return self.process.wait(timeout=TIMEOUT_SECONDS)

    def wait_for(self, event: str, **keys: Any) -> dict[str, Any]:
        """The first event of that name and those keys, from the past or within the timeout."""

        def fits(candidate: dict[str, Any]) -> bool:
            return candidate.get("event") == event and all(candidate.get(key) == value for key, value in keys.items())

        for seen in self.events:
            if fits(seen):
                return seen
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (arrived := self.next_event(deadline - time.monotonic())) is not None:
            if fits(arrived):
                return arrived
        raise AssertionError(f"no {event} {keys} from the worker; its last lines:\n" + "".join(self.lines[-20:]))

    def wait_for_another(self, event: str, **keys: Any) -> dict[str, Any]:
        """As `wait_for`, but not from the past."""
        past, self.events = self.events, []
        try:
            return self.wait_for(event, **keys)
        finally:
            self.events = past + self.events

    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        """The next event that nobody waited for yet; None when the worker has ended or the time is over."""
        try:
            arrived = self._arrived.get(timeout=max(0.0, timeout_seconds))
        except queue.Empty:
            return None
        if arrived is not None:
            self.events.append(arrived)
        return arrived

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            try:
                self._arrived.put(json.loads(line))
            except ValueError:
                continue
        self._arrived.put(None)
