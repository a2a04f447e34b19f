"""Realtime may close, fall silent, refuse or lose a message: jobs flow by the timer, and wake comes back by itself."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import JOIN_SECONDS, MAX_PAUSE_SECONDS, Wakeup
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
        wait_for(lambda: not self.wakeup.connected, 10, "the loss was not noticed")


def wait_for(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """For what the proxy counts, which no event tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
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
        missed = user.insert(target_worker=TARGET)
        running.wait_for_another("realtime_subscribed")
        running.wait_for("job_completed", job_id=missed["id"])
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
    assert listener.wakeup.wait_connected(15), "a join that nobody answers is given up, too"


def test_a_client_that_dies_without_a_word_is_replaced(listener: Listener, proxy: FaultProxy) -> None:
    """Warnings are errors here: of this close the client's own reader dies, by a deprecated attribute, and tells nobody."""
    for sockets in range(1, 6):
        assert proxy.sockets_asked_for == sockets
        proxy.close_sockets(1006)
        listener.wait_lost()
        assert listener.wakeup.wait_connected(15)


def test_a_topic_that_is_refused_is_asked_for_again(listener: Listener, proxy: FaultProxy) -> None:
    proxy.refuse_joins()
    proxy.close_sockets(1006)
    wait_for(lambda: proxy.counts["join refused"] == 2, 10, "it gave up after one refusal")
    assert not listener.wakeup.connected
    proxy.heal()
    assert listener.wakeup.wait_connected(15)


def test_after_a_long_outage_it_is_back_within_15_seconds(listener: Listener, proxy: FaultProxy) -> None:
    assert JOIN_SECONDS + MAX_PAUSE_SECONDS < 15, "a join that was lost just before the end, and the longest pause"
    proxy.refuse_sockets()
    listener.wait_lost()
    wait_for(lambda: proxy.counts["socket refused"] == 4, 60, "it gave up")
    proxy.heal()
    assert listener.wakeup.wait_connected(15)


def test_a_join_that_is_refused_is_not_hammered(supabase: EmbeddedSupabase, proxy: FaultProxy) -> None:
    """A wrong key: each try is farther from the last."""
    settings = Settings.from_env(environ(supabase, supabase_url=proxy.url, supabase_service_role_key="sb_secret_wrong"))
    with Wakeup(settings, on_cancel=lambda _: None) as wakeup:
        assert not wakeup.wait_connected(4)
    assert 2 <= proxy.sockets_asked_for <= 4


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
    assert db.execute("select claims from private.leases").fetchall() == [{"claims": 1}]
