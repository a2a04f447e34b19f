"""What the database decides about its fleet, without RunPod: when a worker is asked for, when a pod is to go, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database
from tests.integration.test_queue_functions import insert, new_user

TARGET = "decided"


class Fleet:
    """One target's settings, jobs, workers and starts."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.user = new_user(db)

    def settings(self, **values: Any) -> None:
        self.db.execute("delete from public.fleet_settings where target_worker = %s", (TARGET,))
        values = {"target_worker": TARGET, "max_workers": 3, "cool_down_seconds": 0} | values
        columns = ", ".join(values)
        self.db.execute(
            f"insert into public.fleet_settings ({columns}) values ({', '.join(['%s'] * len(values))})", [*values.values()]
        )

    def jobs(self, count: int = 1, **columns: Any) -> list[str]:
        return insert(self.db, self.user, count, target_worker=TARGET, **columns)

    def cancel_all(self) -> None:
        self.db.execute("update public.jobs set cancel_requested_at = now() where status = 'queued'")

    def worker(self, worker_id: str, state: str = "ready", **facts: Any) -> None:
        facts = {"target_worker": TARGET, "host": "h", "version": "1", "max_jobs": 2} | facts
        self.db.execute("select public.report_worker(%s, %s, %s)", (worker_id, state, Jsonb(facts)))

    def claim(self, worker_id: str, limit: int) -> None:
        self.db.execute("select public.claim_jobs(%s, %s, '{sdxl_image_fast}', %s, %s)", (worker_id, TARGET, str(uuid4()), limit))

    def decision(self) -> dict[str, Any]:
        row = self.db.execute("select * from private.fleet_decision(%s)", (TARGET,)).fetchone()
        assert row
        return row

    def due(self) -> int:
        return int(self.decision()["starts_due"])

    def claim_starts(self) -> list[dict[str, Any]]:
        return self.db.execute("select id::text, attempt, needed from public.claim_starts(%s)", (TARGET,)).fetchall()

    def report_start(self, start_id: str, pod_id: str | None = None, error: str | None = None, provider: str = "pod") -> None:
        self.db.execute("select public.report_start(%s, %s, %s, %s)", (start_id, provider if pod_id else None, pod_id, error))

    def claim_stops(self) -> list[str]:
        rows = self.db.execute("select pod_id from public.claim_stops(%s)", (TARGET,)).fetchall()
        return [row["pod_id"] for row in rows]

    def started(self, pod_id: str, *, provider: str = "pod") -> str:
        """Asked for and granted."""
        self.jobs()
        [start] = self.claim_starts()
        self.report_start(start["id"], pod_id, provider=provider)
        return str(start["id"])

    def start(self, start_id: str) -> dict[str, Any]:
        row = self.db.execute(
            "select *, next_try_at - now() as pause from public.worker_starts where id = %s", (start_id,)
        ).fetchone()
        assert row
        return row

    def later(self, minutes: float) -> None:
        """As if that much time had gone by: everything that was noted moves into the past."""
        for table, columns in {
            "public.workers": ("last_seen_at", "idle_since"),
            "public.worker_starts": ("created_at", "requested_at", "running_at", "ended_at", "next_try_at"),
        }.items():
            moved = ", ".join(f"{column} = {column} - make_interval(secs => %(s)s)" for column in columns)
            self.db.execute(f"update {table} set {moved} where target_worker = %(t)s", {"s": 60 * minutes, "t": TARGET})

    def health(self) -> dict[str, Any]:
        row = self.db.execute("select * from public.queue_health where target_worker = %s", (TARGET,)).fetchone()
        assert row
        return row


@pytest.fixture
def fleet(db: Database) -> Iterator[Fleet]:
    running = Fleet(db)
    running.settings()
    yield running
    for table in ("fleet_settings", "worker_starts", "workers"):
        db.execute(f"delete from public.{table} where target_worker = %s", (TARGET,))


class TestStarts:
    def test_nothing_is_asked_for_unless_the_operator_says_so(self, db: Database, fleet: Fleet) -> None:
        fleet.jobs()
        fleet.settings(max_workers=0)
        assert (fleet.due(), fleet.decision()["reason"]) == (0, "max_workers is 0")
        db.execute("delete from public.fleet_settings where target_worker = %s", (TARGET,))
        assert fleet.due() == 0

    def test_one_is_when_a_job_waits_and_nobody_is_there_and_no_second_one(self, fleet: Fleet) -> None:
        assert (fleet.due(), fleet.decision()["reason"]) == (0, "nothing waits")
        fleet.jobs()
        assert fleet.due() == 1
        [start] = fleet.claim_starts()
        assert (start["attempt"], start["needed"]) == (1, True)
        fleet.jobs()
        assert (fleet.claim_starts(), fleet.decision()["reason"]) == ([], "enough are coming")

    def test_jobs_put_off_and_those_of_other_targets_do_not_count(self, fleet: Fleet) -> None:
        fleet.jobs(run_at="2100-01-01")
        insert(fleet.db, fleet.user, 5, target_worker="another")
        assert fleet.due() == 0

    def test_none_while_a_worker_has_room(self, fleet: Fleet) -> None:
        fleet.worker("w")
        fleet.jobs(4)
        assert (fleet.due(), fleet.decision()["reason"]) == (0, "a worker has room")
        fleet.claim("w", limit=2)
        assert fleet.due() == 1, "it holds as many as it may"
        fleet.worker("w", state="draining")
        fleet.later(0)
        assert fleet.due() == 1

    @pytest.mark.parametrize("state", ["stopped", "failed"])
    def test_a_worker_that_does_not_live_has_none(self, fleet: Fleet, state: str) -> None:
        fleet.worker("w", state=state)
        fleet.jobs()
        assert fleet.due() == 1

    def test_a_silent_worker_has_none(self, fleet: Fleet) -> None:
        fleet.worker("w")
        fleet.jobs()
        fleet.later(minutes=2)
        assert fleet.due() == 1

    def test_one_that_loads_its_model_counts_as_coming(self, fleet: Fleet) -> None:
        fleet.worker("w", state="starting")
        fleet.jobs()
        assert (fleet.due(), fleet.decision()["coming"]) == (0, 1)
        fleet.later(minutes=11)
        assert fleet.due() == 1, "it never came"

    def test_more_for_more_jobs_up_to_the_most(self, fleet: Fleet) -> None:
        fleet.settings(max_workers=3, jobs_per_worker=2)
        fleet.jobs(3)
        assert len(fleet.claim_starts()) == 2
        fleet.jobs(97)
        assert len(fleet.claim_starts()) == 1
        assert (fleet.due(), fleet.decision()["reason"]) == (0, "max_workers are there or coming")

    def test_after_one_was_asked_for_there_is_a_cool_down(self, fleet: Fleet) -> None:
        fleet.settings(cool_down_seconds=120, jobs_per_worker=1)
        fleet.jobs()
        fleet.claim_starts()
        fleet.jobs(5)
        assert (fleet.due(), fleet.decision()["reason"]) == (0, "cooling down")
        fleet.later(minutes=2.1)
        assert fleet.due() == 3, "two more, and the first once more, of which nobody heard"

    def test_workers_may_be_given_time_to_get_to_a_job(self, fleet: Fleet) -> None:
        fleet.settings(patience_seconds=60)
        fleet.jobs()
        assert fleet.due() == 1, "nobody is there who could"
        fleet.worker("w", max_jobs=1)
        fleet.claim("w", limit=1)
        [waiting] = fleet.jobs()
        assert (fleet.due(), fleet.decision()["reason"]) == (0, "the workers may still get to it")
        fleet.db.execute("update public.jobs set created_at = now() - interval '61 s' where id = %s", (waiting,))
        assert fleet.due() == 1

    def test_who_asks_at_the_same_time_gets_none(self, supabase: EmbeddedSupabase, fleet: Fleet) -> None:
        import psycopg

        fleet.jobs()
        with psycopg.connect(supabase.db_url) as other:
            assert len(other.execute("select * from public.claim_starts(%s)", (TARGET,)).fetchall()) == 1
            fleet.db.execute("set lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                fleet.claim_starts()
            other.commit()
        fleet.db.execute("reset lock_timeout")
        assert fleet.claim_starts() == []


class TestWhatRunPodAnswers:
    def test_a_no_is_asked_again_after_longer_and_longer_pauses_and_is_seen(self, fleet: Fleet) -> None:
        fleet.jobs()
        [start] = fleet.claim_starts()
        for attempt, pause in ((1, 5), (2, 10), (3, 20)):
            fleet.report_start(start["id"], error=f"HTTP 500 no. {attempt}")
            health = fleet.health()
            assert (health["starting_workers"], health["runpod_error"], health["runpod_attempts"]) == (
                1, f"HTTP 500 no. {attempt}", attempt,
            )  # fmt: skip
            assert pause - 1 < fleet.start(start["id"])["pause"].total_seconds() <= pause
            assert fleet.claim_starts() == []
            fleet.later(pause / 60)
            [start] = fleet.claim_starts()
            assert start["attempt"] == attempt + 1
        fleet.report_start(start["id"], "pod1")
        health = fleet.health()
        assert (health["starting_workers"], health["runpod_error"], health["runpod_attempts"]) == (1, None, None)

    def test_no_word_counts_as_a_no(self, fleet: Fleet) -> None:
        fleet.jobs()
        [first] = fleet.claim_starts()
        fleet.later(minutes=1.1)
        [again] = fleet.claim_starts()
        assert (again["id"], again["attempt"]) == (first["id"], 2)

    def test_what_is_not_needed_any_more_is_only_looked_for(self, fleet: Fleet) -> None:
        fleet.jobs()
        [start] = fleet.claim_starts()
        fleet.report_start(start["id"], error="the reply was lost")
        fleet.cancel_all()
        fleet.later(minutes=1)
        [again] = fleet.claim_starts()
        assert not again["needed"]
        fleet.report_start(again["id"])
        assert fleet.start(again["id"])["state"] == "ended"

    def test_a_late_or_repeated_word_changes_nothing(self, fleet: Fleet) -> None:
        start_id = fleet.started("pod1")
        fleet.report_start(start_id, error="late")
        fleet.report_start(start_id, "pod2")
        start = fleet.start(start_id)
        assert (start["state"], start["pod_id"], start["error"]) == ("requested", "pod1", None)


class TestTheWayOfAPod:
    def test_it_runs_once_its_worker_is_ready(self, fleet: Fleet) -> None:
        start_id = fleet.started("pod1")
        fleet.worker("w", state="starting", pod_id="pod1")
        assert (fleet.start(start_id)["state"], fleet.decision()["coming"]) == ("requested", 1)
        fleet.worker("w", pod_id="pod1")
        assert (fleet.start(start_id)["state"], fleet.decision()["coming"]) == ("running", 0)

    def test_a_worker_that_is_faster_than_runpods_answer_is_known(self, fleet: Fleet) -> None:
        fleet.jobs()
        [start] = fleet.claim_starts()
        fleet.worker("w", pod_id="pod1")
        fleet.report_start(start["id"], "pod1")
        assert fleet.start(start["id"])["state"] == "running"

    def test_it_goes_after_idle_minutes_and_only_then(self, fleet: Fleet) -> None:
        start_id = fleet.started("pod1")
        fleet.worker("w", pod_id="pod1")
        fleet.cancel_all()
        assert fleet.claim_stops() == [], "not known to be idle"
        fleet.worker("w", pod_id="pod1", idle_seconds=540)
        assert fleet.claim_stops() == []
        fleet.worker("w", pod_id="pod1", idle_seconds=601)
        assert fleet.claim_stops() == ["pod1"]
        assert fleet.claim_stops() == [], "somebody is at it"
        fleet.db.execute("select public.report_stop(%s)", (start_id,))
        assert fleet.start(start_id)["state"] == "ended"
        assert fleet.db.execute("select state from public.workers where id = 'w'").fetchone() == {"state": "stopped"}

    @pytest.mark.parametrize(
        "why", ["a job waits", "it holds a job", "another GPU of it is busy", "idle_minutes is 0", "not asked for"]
    )
    def test_an_idle_one_stays_when(self, fleet: Fleet, why: str) -> None:
        fleet.started("pod1")
        fleet.cancel_all()
        fleet.worker("w", pod_id="pod1", idle_seconds=3600)
        match why:
            case "a job waits":
                fleet.jobs()
            case "it holds a job":
                fleet.jobs()
                fleet.claim("w", limit=1)
            case "another GPU of it is busy":
                fleet.worker("w2", pod_id="pod1", idle_seconds=1)
            case "idle_minutes is 0":
                fleet.settings(idle_minutes=0)
            case "not asked for":
                fleet.db.execute("update public.worker_starts set pod_id = 'pod2', state = 'ended', ended_at = now()")
        assert fleet.claim_stops() == []

    def never_ready(self, fleet: Fleet, pod_id: str) -> str:
        """A pod that was asked for, timed out, and was removed."""
        start_id = fleet.started(pod_id)
        fleet.worker(pod_id, state="failed", pod_id=pod_id, error="model_missing: no such file")
        assert fleet.claim_stops() == []
        fleet.later(minutes=10.1)
        assert fleet.claim_stops() == [pod_id]
        assert fleet.start(start_id)["error"] == "never ready"
        fleet.db.execute("select public.report_stop(%s)", (start_id,))
        return start_id

    def test_one_that_is_never_ready_goes_and_its_place_is_free_a_minute_later(self, fleet: Fleet) -> None:
        fleet.settings(max_workers=1, start_timeout_seconds=600)
        self.never_ready(fleet, "pod1")
        assert fleet.due() == 0
        fleet.later(minutes=1)
        assert fleet.due() == 1

    def test_the_next_ones_are_asked_for_after_longer_and_longer_pauses_one_at_a_time_and_it_is_seen(self, fleet: Fleet) -> None:
        fleet.settings(max_workers=3, jobs_per_worker=1, start_timeout_seconds=600)
        for time, pause_minutes in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
            self.never_ready(fleet, f"pod{time}")
            reason = fleet.health()["why_no_more"]
            assert reason.startswith(f"{time} workers in a row never got ready; the next one is asked for at ")
            fleet.later(minutes=pause_minutes - 0.1)
            assert fleet.due() == 0
            fleet.later(minutes=0.1)
            fleet.jobs(5)
            assert fleet.due() == 1

    def test_one_that_gets_ready_ends_the_pauses(self, fleet: Fleet) -> None:
        fleet.settings(max_workers=3, jobs_per_worker=1, start_timeout_seconds=600)
        self.never_ready(fleet, "pod1")
        fleet.later(minutes=1)
        fleet.started("pod2")
        fleet.worker("w2", pod_id="pod2", max_jobs=1)
        fleet.claim("w2", limit=1)
        fleet.jobs(5)
        assert fleet.due() == 2

    def test_one_whose_workers_fell_silent_goes(self, fleet: Fleet) -> None:
        fleet.started("pod1")
        fleet.worker("w", pod_id="pod1")
        fleet.later(minutes=1.5)
        assert fleet.claim_stops() == [], "it may come back"
        fleet.later(minutes=1)
        assert fleet.claim_stops() == ["pod1"]

    def test_one_whose_workers_ended_goes_at_once(self, fleet: Fleet) -> None:
        fleet.started("pod1")
        for worker_id in ("w", "w2"):
            fleet.worker(worker_id, pod_id="pod1")
        fleet.worker("w", state="stopped", pod_id="pod1")
        assert fleet.claim_stops() == [], "the other one works"
        fleet.worker("w2", state="stopped", pod_id="pod1")
        assert fleet.claim_stops() == ["pod1"]

    def test_a_pod_that_runpod_does_not_remove_is_tried_again_and_seen(self, fleet: Fleet) -> None:
        start_id = fleet.started("pod1")
        fleet.worker("w", state="stopped", pod_id="pod1")
        assert fleet.claim_stops() == ["pod1"]
        fleet.db.execute("select public.report_stop(%s, 'HTTP 503')", (start_id,))
        health = fleet.health()
        assert (health["stopping_workers"], health["runpod_error"], health["runpod_attempts"]) == (1, "HTTP 503", 1)
        assert fleet.claim_stops() == []
        fleet.later(minutes=0.1)
        assert fleet.claim_stops() == ["pod1"]


class TestTheWayOfAServerlessRequest:
    def test_it_ends_when_its_worker_has_drained_the_queue(self, fleet: Fleet) -> None:
        start_id = fleet.started("request1", provider="serverless")
        fleet.worker("w", pod_id="x1", start_id=start_id)
        assert fleet.start(start_id)["state"] == "running"
        fleet.worker("w", state="stopped", pod_id="x1", start_id=start_id)
        assert fleet.start(start_id)["state"] == "ended"
        assert fleet.claim_stops() == []

    def test_a_container_that_is_used_again_serves_the_next_one(self, fleet: Fleet) -> None:
        first = fleet.started("request1", provider="serverless")
        fleet.worker("w", state="stopped", pod_id="x1", start_id=first)
        second = fleet.started("request2", provider="serverless")
        fleet.worker("w", pod_id="x1", start_id=second)
        assert (fleet.start(first)["state"], fleet.start(second)["state"]) == ("ended", "running")

    def test_one_whose_yes_was_lost_is_known_by_its_worker(self, fleet: Fleet) -> None:
        fleet.jobs()
        [start] = fleet.claim_starts()
        fleet.worker("w", pod_id="x1", start_id=start["id"])
        found = fleet.start(start["id"])
        assert (found["state"], found["provider"], found["pod_id"]) == ("running", "serverless", "x1")

    def test_one_that_is_never_ready_ends_without_anything_to_remove(self, fleet: Fleet) -> None:
        start_id = fleet.started("request1", provider="serverless")
        fleet.later(minutes=21)
        assert fleet.claim_stops() == []
        assert (fleet.start(start_id)["state"], fleet.start(start_id)["error"]) == ("ended", "never ready")


def test_what_goes_wrong_with_the_fleet_stops_no_insert(db: Database, fleet: Fleet) -> None:
    db.execute("alter function private.fleet_decision(text) rename to fleet_indecision")
    try:
        assert len(fleet.jobs()) == 1
    finally:
        db.execute("alter function private.fleet_indecision(text) rename to fleet_decision")


def test_the_health_says_why_there_are_no_more(fleet: Fleet) -> None:
    fleet.settings(max_workers=0)
    fleet.jobs()
    assert fleet.health()["why_no_more"] == "max_workers is 0"
