"""Supervised workers as a host keeps them: when the supervisor is gone a new one is started, and everything they say is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ourvidz_sdxl.local import ROOT
from tests.processes import SUPERVISED_STUB

RESTART_SECONDS = 0.5
STOP_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Said:
    """One line of a pod's log. `at` is the wall clock of the harness."""

    at: float
    pod: str
    event: Mapping[str, Any]


class Pod:
    """One place for a worker. `with Pod(...)` starts it and drains it at the end."""

    def __init__(self, name: str, environ: Mapping[str, str], log_file: Path, command: list[str] = SUPERVISED_STUB) -> None:
        self.name = name
        self._environ = {**environ, "WORKER_ID": name}
        self._command = command
        self._log = log_file.open("a")
        self._changed = threading.Condition()
        self.said: list[Said] = []
        self.noise: list[str] = []  # lines that are no events: tracebacks, most likely
        self.claimed: set[str] = set()
        self.exits: list[int] = []
        self.child: int | None = None
        self.process: subprocess.Popen[str]
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Pod:
        self._start()
        self._begin(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(ProcessLookupError):
            for number in (signal.SIGCONT, signal.SIGTERM):
                self.process.send_signal(number)
            if self.child and self.is_ours(self.child):
                os.kill(self.child, signal.SIGCONT)
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:  # the readers end when nobody is left who could write
            thread.join(max(0.0, deadline - time.monotonic()))
        if self.process.poll() is None:
            self.process.kill()
            self.kill_child()
        self._log.close()

    def wait_for(self, event: str, timeout_seconds: float = 60.0) -> None:
        """From the past or within the timeout."""
        with self._changed:
            if not self._changed.wait_for(lambda: any(one.event["event"] == event for one in self.said), timeout_seconds):
                raise TimeoutError(f"{self.name} never said {event}; see its log, and: " + "".join(self.noise[-20:]))

    def stragglers(self) -> list[int]:
        """Workers of earlier supervisors that still live."""
        with self._changed:
            started = {one.event["pid"] for one in self.said if one.event["event"] == "worker_started"}
        return [pid for pid in started if pid != self.child and self.is_ours(pid)]

    def next_claim(self, timeout_seconds: float) -> str | None:
        """Waits for the next `job_claimed`; the job's id, or None."""
        return self._next(lambda said: said.event["event"] == "job_claimed", "job_id", timeout_seconds)

    def wait_for_child(self, timeout_seconds: float) -> int | None:
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not (self.child and self.is_ours(self.child)):
                if not self._changed.wait(min(0.2, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    return None
            return self.child

    def kill_child(self) -> None:
        if self.child and self.is_ours(self.child):
            os.kill(self.child, signal.SIGKILL)

    @staticmethod
    def is_ours(pid: int) -> bool:
        """Whether that process lives and is a stub worker, and not somebody who got its number."""
        try:
            return b"tests.stub_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self._command, env=self._environ, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._begin(self._read, self.process)

    def _begin(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep(self) -> None:
        while True:
            self.exits.append(self.process.wait())
            if self._over.is_set():
                return
            if self._over.wait(RESTART_SECONDS):
                return
            self._start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        with process.stderr:
            for line in process.stderr:
                at = time.time()
                self._log.write(line)
                try:
                    event = json.loads(line)
                    assert "event" in event
                except (ValueError, AssertionError, TypeError):
                    self.noise.append(line)
                    continue
                with self._changed:
                    self.said.append(Said(at=at, pod=self.name, event=event))
                    if event["event"] == "worker_started":
                        self.child = event["pid"]
                    elif event["event"] == "job_claimed":
                        self.claimed.add(event["job_id"])
                    self._changed.notify_all()
                if event["event"] in {"worker_started", "worker_died"}:
                    self._log.flush()

    def _next(self, fits: Any, key: str, timeout_seconds: float) -> str | None:
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            seen = len(self.said)
            while True:
                for said in self.said[seen:]:
                    if fits(said):
                        return str(said.event[key])
                seen = len(self.said)
                if not self._changed.wait(deadline - time.monotonic()):
                    return None
