"""Realtime may close, fall silent, refuse or lose a message: jobs flow by the timer, and wake comes back by itself."""

import threading
import time
from collections.abc import Iterator

import pytest

from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import MAX_PAUSE_SECONDS, Wakeup
from tests.fault_proxy import RPC, FaultProxy
from tests.integration.conftest import Database, User
from tests.processes import STUB, WorkerProcess, environ

TARGET = "by-realtime"


@pytest.fixture
def proxy(supabase: EmbeddedSupabase) -> Iterator[FaultProxy]:
    with FaultProxy(supabase.url) as running:
        yield running


def worker(supabase: EmbeddedSupabase, proxy: FaultProxy, **settings: object) -> WorkerProcess:
    """Its timers are so slow that only a wake, or a claim on subscribing, can be quick."""
    timers = {"poll_interval_seconds": 3000, "poll_interval_connected_seconds": 3000}
    return WorkerProcess(supabase, STUB, target_worker=TARGET, supabase_url=proxy.url, **(timers | settings))  # type: ignore[arg-type]


class Listener:
    """A Wakeup of its own, with its losses and returns as they happen. Heartbeats come fast, so that silence shows soon."""

    def __init__(self, supabase: EmbeddedSupabase, proxy: FaultProxy) -> None:
        settings = Settings.from_env(environ(supabase, supabase_url=proxy.url, target_worker=TARGET))
        self.wakeup = Wakeup(settings, on_cancel=lambda _: None, heartbeat_seconds=0.3)

    def wait_lost(self) -> None:
        deadline = time.monotonic() + 10
        while self.wakeup.connected:
            assert time.monotonic() < deadline, "the loss was not noticed"
            time.sleep(0.01)


@pytest.fixture
def listener(supabase: EmbeddedSupabase, proxy: FaultProxy) -> Iterator[Listener]:
    listening = Listener(supabase, proxy)
    with listening.wakeup:
        assert listening.wakeup.wait_connected(10)
        yield listening


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011])
def test_however_it_is_closed_wake_comes_back(
    supabase: EmbeddedSupabase, proxy: FaultProxy, db: Database, user: User, code: int
) -> None:
    with worker(supabase, proxy) as running:
        proxy.close_sockets(code)
        running.wait_for("realtime_lost")
        running.wait_for_another("realtime_subscribed")
        for _ in range(2):
            running.wait_for("job_completed", job_id=user.insert(target_worker=TARGET)["id"])


def test_what_was_missed_is_claimed_on_subscribing(supabase: EmbeddedSupabase, proxy: FaultProxy, db: Database, user: User) -> None:
    with worker(supabase, proxy) as running:
        proxy.refuse_sockets()
        running.wait_for("realtime_lost")
        job = user.insert(target_worker=TARGET)
        proxy.heal()
        running.wait_for("job_completed", job_id=job["id"])


def test_while_it_is_away_jobs_flow_by_the_timer(supabase: EmbeddedSupabase, proxy: FaultProxy, db: Database, user: User) -> None:
    with worker(supabase, proxy, poll_interval_seconds=0.3) as running:
        proxy.refuse_sockets()
        running.wait_for("realtime_lost")
        for _ in range(3):
            running.wait_for("job_completed", job_id=user.insert(target_worker=TARGET)["id"])


def test_silence_is_noticed_though_the_connection_stands(listener: Listener, proxy: FaultProxy) -> None:
    """Fails should the client handle the replies to heartbeats differently in another version."""
    losing = threading.Thread(target=listener.wait_lost, daemon=True)
    losing.start()
    losing.join(2)
    assert losing.is_alive(), "several heartbeats were answered, and kept it"
    proxy.silence_sockets()
    listener.wait_lost()
    proxy.heal()
    assert listener.wakeup.wait_connected(30), "a join that nobody answers is given up, too"


def test_after_a_long_outage_it_is_back_within_15_seconds(listener: Listener, proxy: FaultProxy) -> None:
    assert MAX_PAUSE_SECONDS * 1.5 + 1 < 15
    proxy.refuse_sockets()
    listener.wait_lost()
    deadline = time.monotonic() + 60
    while proxy.counts["socket refused"] < 4:  # pauses of 1, 2 and 4 s with their jitter
        assert time.monotonic() < deadline
        time.sleep(0.05)
    proxy.heal()
    assert listener.wakeup.wait_connected(15)


def test_a_join_that_is_refused_is_not_hammered(supabase: EmbeddedSupabase, proxy: FaultProxy) -> None:
    """A wrong key: each try is farther from the last."""
    settings = Settings.from_env(environ(supabase, supabase_url=proxy.url, supabase_service_role_key="sb_secret_wrong"))
    with Wakeup(settings, on_cancel=lambda _: None) as wakeup:
        assert not wakeup.wait_connected(4)
    assert proxy.counts.total() <= 4


def test_a_cancel_whose_broadcast_is_lost_comes_with_the_heartbeat(
    supabase: EmbeddedSupabase, proxy: FaultProxy, db: Database, user: User
) -> None:
    proxy.swallow("cancel")
    with worker(supabase, proxy, lease_seconds=10, stub_step_seconds=0.1) as running:
        job = user.insert(target_worker=TARGET, steps=100)
        running.wait_for("job_claimed", job_id=job["id"])
        user.client.table("jobs").update({"cancel_requested_at": "now"}).eq("id", job["id"]).execute()
        running.wait_for("job_cancelled", job_id=job["id"])
    assert proxy.counts["broadcast swallowed"] == 1
    assert user.job(job["id"])["status"] == "cancelled"


def test_the_claim_on_subscribing_survives_a_lost_reply(
    supabase: EmbeddedSupabase, proxy: FaultProxy, db: Database, user: User
) -> None:
    with worker(supabase, proxy) as running:
        proxy.lose_replies(RPC + "claim_jobs")
        job = user.insert(target_worker=TARGET)
        running.wait_for("job_completed", job_id=job["id"])
    assert user.job(job["id"])["claims"] == 1
