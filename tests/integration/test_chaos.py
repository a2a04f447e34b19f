"""`make chaos` in small: workers die and stand still, Postgres restarts, replies are lost; every job still ends exactly once."""

from pathlib import Path

import pytest

from tests.chaos.__main__ import main
from tests.chaos.schedule import Fault, draw

SEED, JOBS, WORKERS = 28, 40, 3


def test_a_seed_gives_one_schedule() -> None:
    assert draw(1, JOBS, WORKERS) == draw(1, JOBS, WORKERS)
    assert draw(1, JOBS, WORKERS) != draw(2, JOBS, WORKERS)


def test_a_long_run_strikes_often_enough() -> None:
    for seed in range(20):
        faults = [strike.fault for strike in draw(seed, 1500, 5).strikes]
        assert sum(fault.kills for fault in faults) >= 40
        assert sum(fault.stalls for fault in faults) >= 10
        assert {Fault.STOP_POSTGRES, Fault.CRASH_POSTGRES} <= set(faults)


def test_every_job_ends_exactly_once_whatever_is_struck(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--jobs", str(JOBS), "--seed", str(SEED), "--workers", str(WORKERS), "--logs", str(tmp_path)])
    assert status == 0, capsys.readouterr().out
