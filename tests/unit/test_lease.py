"""A lease ends once, for its first reason, and by itself when it could not be renewed."""

import time
from uuid import uuid4

import pytest

from ourvidz_sdxl.errors import JobCancelled, LeaseLost, Released
from ourvidz_sdxl.queue import Lease


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_holds_until_its_deadline() -> None:
    clock = Clock()
    lease = Lease(uuid4(), uuid4(), expires_at=60, clock=clock)
    clock.now = 59.9
    lease.check()
    clock.now = 60
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(uuid4(), uuid4(), expires_at=time.monotonic() + 60)
    for jump in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        lease.check()


def test_the_first_reason_stays() -> None:
    lease = Lease(uuid4(), uuid4(), expires_at=60, clock=Clock())
    lease.end(JobCancelled)
    lease.end(Released)
    with pytest.raises(JobCancelled):
        lease.check()
