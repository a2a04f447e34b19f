"""When the worker looks for work."""

import time

import pytest

from ourvidz_sdxl.metrics import Wake
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import Wakeup

SETTINGS = Settings.from_env(
    {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x", "POLL_INTERVAL_SECONDS": "3600"}
)


@pytest.fixture
def wakeup() -> Wakeup:
    return Wakeup(SETTINGS, on_cancel=lambda _: None)


def test_a_hint_ends_the_wait_even_when_it_came_before(wakeup: Wakeup) -> None:
    wakeup.wake(Wake.LANE)
    wakeup.wait()


def test_after_a_wake_comes_a_second_look_and_then_the_timer(wakeup: Wakeup) -> None:
    wakeup.wake(Wake.REALTIME)
    wakeup.wait()
    wakeup.wait()  # would last an hour
    before = time.monotonic()
    wakeup.wait(0.3)
    assert time.monotonic() - before >= 0.3, "no third look"


def test_what_comes_from_here_needs_no_second_look(wakeup: Wakeup) -> None:
    wakeup.wake(Wake.LANE)
    wakeup.wait()
    before = time.monotonic()
    wakeup.wait(0.3)
    assert time.monotonic() - before >= 0.3
