"""Carries out what the schedule strikes, and notes when each blow fell."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.network import Network
from tests.chaos.pods import Pod
from tests.chaos.schedule import MOMENT_WAIT_SECONDS, Fault, Strike
from tests.chaos.witness import Uploads

CHILD_WAIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A strike that fell: `at` and `until` (the end of a stall) on the wall clock."""

    strike: Strike
    at: float
    until: float
    job_id: str | None  # whose claim or upload was waited for


class Striker:
    """Every strike has a thread of its own, since a stall lasts longer than the pause to the next kill."""

    def __init__(
        self, strikes: Sequence[Strike], pods: Sequence[Pod], uploads: Uploads, network: Network, postmaster: Path
    ) -> None:
        """`postmaster` is Postgres's pid file."""
        self._network = network
        self._uploads = uploads
        self._strikes = strikes
        self._pods = pods
        self._postmaster = postmaster
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.blows: list[Blow] = []
        self.missed: list[tuple[Strike, str]] = []

    def start(self, began: float) -> None:
        """`began` is the monotonic clock's at second 0 of the schedule."""
        for strike in self._strikes:
            thread = threading.Thread(target=self._carry_out, args=(strike, began), daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def _carry_out(self, strike: Strike, began: float) -> None:
        time.sleep(max(0.0, began + strike.at_seconds - time.monotonic()))
        try:
            blow = self._strike_postgres(strike) if strike.victim is None else self._strike_pod(strike, self._pods[strike.victim])
        except (ProcessLookupError, FileNotFoundError) as error:
            blow = f"{type(error).__name__}: it was gone already"
        with self._lock:
            if isinstance(blow, Blow):
                self.blows.append(blow)
            else:
                self.missed.append((strike, blow))

    def _strike_postgres(self, strike: Strike) -> Blow:
        pid = int(self._postmaster.read_text().split("\n", 1)[0])
        os.kill(pid, signal.SIGINT if strike.fault is Fault.STOP_POSTGRES else signal.SIGKILL)
        at = time.time()
        return Blow(strike=strike, at=at, until=at, job_id=None)

    def _strike_pod(self, strike: Strike, pod: Pod) -> Blow | str:
        if strike.moment == "claim":
            job_id = pod.next_claim(MOMENT_WAIT_SECONDS)
        else:
            job_id = self._uploads.next_of(pod.claimed, MOMENT_WAIT_SECONDS)
        time.sleep(strike.delay_seconds)
        if strike.fault is Fault.CUT_OFF:
            at = time.time()
            self._network.cut(pod.name, strike.stall_seconds)
            time.sleep(strike.stall_seconds)
            return Blow(strike=strike, at=at, until=time.time(), job_id=job_id)
        child = pod.wait_for_child(CHILD_WAIT_SECONDS)
        if child is None:
            return "no worker process came up"
        supervisor = pod.process.pid
        victims = {
            Fault.KILL_CHILD: [child],
            Fault.STALL_CHILD: [child],
            Fault.KILL_SUPERVISOR: [supervisor],
        }.get(strike.fault, [supervisor, child])  # the supervisor first, so that it cannot give back what its worker held
        for pid in victims:
            os.kill(pid, signal.SIGSTOP if strike.fault.stalls else signal.SIGKILL)
        at = time.time()
        if strike.fault.stalls:
            time.sleep(strike.stall_seconds)
            still = pod.is_ours(child)
            for pid in reversed(victims):
                os.kill(pid, signal.SIGCONT)
            if not still:
                return "it was killed while it stood still"
        return Blow(strike=strike, at=at, until=time.time(), job_id=job_id)
