"""Two real connections at once: whoever comes second waits or is skipped, and in the end one has won.

That the second one waits is asked of Postgres (pg_blocking_pids), not guessed from the time that passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database
from tests.integration.test_queue_functions import TARGET, expire, image, insert, new_user
from tests.pace import TIMEOUT_SECONDS

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """One connection with its transaction: open until commit() or rollback()."""

    connection: Database

    def claim(self, token: str, limit: int = 1, job_types: tuple[str, ...] = ("sdxl_image_fast",)) -> dict[str, Any]:
        return cast("dict[str, Any]", self.ask("claim_jobs('w', %s, %s, %s, %s)", TARGET, list(job_types), token, limit))

    def heartbeat(self, job_id: str, token: str) -> str:
        return cast("str", self.ask("heartbeat_jobs(%s::uuid[], %s)", [job_id], token)[0]["verdict"])

    def finish(self, job_id: str, token: str, outcome: str) -> str:
        images = [image()] if outcome == "completed" else []
        error = {"code": "some_error", "message": "m"}
        return cast("str", self.ask("finish_job(%s, %s, %s, %s, %s)", job_id, token, outcome, Jsonb(images), Jsonb(error)))

    def reap(self) -> int:
        return cast("int", self.ask("reap_jobs(%s)", TARGET))

    def cancel(self, job_id: str) -> int:
        """As its user's browser does it, on whose update row security puts the condition. Returns how many rows it changed."""
        query = "update public.jobs set cancel_requested_at = now() where id = %s and status in ('queued', 'processing')"
        return self.connection.execute(query, (job_id,)).rowcount

    def ask(self, call: str, *arguments: Any) -> Any:
        query = f"select coalesce(jsonb_agg(to_jsonb(f)), '[]') as answer from public.{call} f"
        row = self.connection.execute(query.encode(), arguments).fetchone()
        answer = row["answer"] if row else []
        return answer if call.startswith("heartbeat") else answer[0]

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()


@dataclass(frozen=True)
class Race:
    """`first` moves and stays in its transaction; `second` comes meanwhile."""

    db: Database
    first: Session
    second: Session
    pool: ThreadPoolExecutor

    def waits(self, call: Callable[[], T]) -> Future[T]:
        """`call` is the second's: it is under way, and Postgres says that it waits for the first."""
        ours, theirs = (session.connection.info.backend_pid for session in (self.first, self.second))
        running = self.pool.submit(call)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline and not running.done():
            row = self.db.execute("select %s = any (pg_blocking_pids(%s)) as blocked", (ours, theirs)).fetchone()
            if row == {"blocked": True}:
                return running
        raise AssertionError(f"it did not wait but came back: {running.result(timeout=0)}")


@pytest.fixture
def race(supabase: EmbeddedSupabase, db: Database) -> Iterator[Race]:
    with (
        psycopg.connect(supabase.db_url, row_factory=dict_row) as first,
        psycopg.connect(supabase.db_url, row_factory=dict_row) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        for connection in (first, second):
            connection.execute("set lock_timeout = '10 s'")
            connection.commit()
        yield Race(db, Session(first), Session(second), pool)
        first.rollback()  # whoever waits for it comes back, also when a test failed
        second.rollback()


@pytest.fixture
def job_id(db: Database) -> str:
    return insert(db, new_user(db))[0]


@pytest.fixture
def token() -> str:
    return str(uuid4())


@pytest.fixture
def leased(race: Race, job_id: str, token: str) -> str:
    """The id of a job that is processing under `token`."""
    race.first.claim(token)
    race.first.commit()
    return job_id


def row(db: Database, job_id: str) -> dict[str, Any]:
    return cast("dict[str, Any]", db.execute("select * from public.jobs where id = %s", (job_id,)).fetchone())


class TestClaimAgainstClaim:
    def test_one_gets_the_job_and_the_other_is_told_that_there_may_be_more(self, race: Race, job_id: str) -> None:
        assert [job["id"] for job in race.first.claim(str(uuid4()))["jobs"]] == [job_id]
        skipped = race.second.claim(str(uuid4()))
        assert (skipped["jobs"], skipped["more"]) == ([], True), "an empty claim is no empty queue: the first may roll back"
        race.first.commit()
        race.second.commit()
        nothing = race.second.claim(str(uuid4()))
        assert (nothing["jobs"], nothing["more"]) == ([], False)
        assert 50_000 < nothing["next_run_in_ms"] <= 60_000, "when the other's lease would end"

    def test_what_is_rolled_back_can_be_claimed_again(self, race: Race, job_id: str) -> None:
        race.first.claim(str(uuid4()))
        race.first.rollback()
        (job,) = race.second.claim(str(uuid4()))["jobs"]
        assert (job["id"], job["attempts"], job["claims"]) == (job_id, 1, 1)

    def test_of_two_jobs_each_gets_one_without_waiting(self, race: Race) -> None:
        ids = insert(race.db, new_user(race.db), 2)
        claimed = [session.claim(str(uuid4()))["jobs"][0]["id"] for session in (race.first, race.second)]
        assert sorted(claimed) == sorted(ids)

    def test_the_same_call_made_again_while_the_first_one_runs_waits_and_gets_the_same_job(self, race: Race, token: str) -> None:
        insert(race.db, new_user(race.db), 2)
        (job,) = race.first.claim(token)["jobs"]
        again = race.waits(lambda: race.second.claim(token))
        race.first.commit()
        assert [(row["id"], row["claims"]) for row in again.result()["jobs"]] == [(job["id"], 1)]

    def test_only_one_looks_for_dead_leases(self, race: Race, leased: str) -> None:
        expire(race.db)
        race.db.execute("update private.reaping set next_at = now()")
        race.first.claim(str(uuid4()))
        race.second.claim(str(uuid4()))  # neither waits
        race.second.commit()
        race.first.commit()
        assert row(race.db, leased)["status"] == "queued"


@pytest.mark.parametrize("table", ["job_events", "job_images"])
def test_a_claim_takes_a_job_whose_child_row_is_just_being_inserted(race: Race, job_id: str, table: str) -> None:
    children = {
        "job_events": "insert into public.job_events (job_id, status, attempt) values (%s, 'queued', 0)",
        "job_images": """
            insert into public.job_images
                   (job_id, index, bucket, path, thumbnail_path, seed, width, height, mime_type, bytes, sha256)
            values (%s, 0, 'b', 'p', 't', 1, 8, 8, 'image/png', 1, repeat('0', 64))""",
    }
    race.first.connection.execute(children[table].encode(), (job_id,))
    assert [job["id"] for job in race.second.claim(str(uuid4()))["jobs"]] == [job_id]


class TestFinishAgainstFinish:
    @pytest.mark.parametrize("outcome", ["completed", "failed", "retry", "cancelled", "released", "crashed"])
    def test_the_same_call_twice_waits_and_is_known_already(self, race: Race, leased: str, token: str, outcome: str) -> None:
        assert race.first.finish(leased, token, outcome) == "ok"
        second = race.waits(lambda: race.second.finish(leased, token, outcome))
        race.first.commit()
        assert second.result() == "already"

    def test_the_first_word_holds(self, race: Race, leased: str, token: str) -> None:
        race.first.finish(leased, token, "completed")
        second = race.waits(lambda: race.second.finish(leased, token, "failed"))
        race.first.commit()
        assert second.result() == "lost"
        race.second.commit()
        assert row(race.db, leased)["status"] == "completed"

    def test_if_the_first_is_rolled_back_the_second_counts(self, race: Race, leased: str, token: str) -> None:
        race.first.finish(leased, token, "failed")
        second = race.waits(lambda: race.second.finish(leased, token, "completed"))
        race.first.rollback()
        assert second.result() == "ok"
        race.second.commit()
        assert row(race.db, leased)["status"] == "completed"
        assert race.db.execute("select count(*) from public.job_images").fetchone() == {"count": 1}


class TestReap:
    """Of a lease that has run out."""

    @pytest.fixture(autouse=True)
    def _run_out(self, race: Race, leased: str) -> None:
        expire(race.db)

    def test_skips_a_job_that_is_just_being_finished(self, race: Race, leased: str, token: str) -> None:
        assert race.first.finish(leased, token, "completed") == "ok", "late, but nobody has taken it yet"
        assert race.second.reap() == 0
        race.first.commit()
        race.second.commit()
        assert row(race.db, leased)["status"] == "completed"

    def test_fences_a_finish_off_that_comes_meanwhile(self, race: Race, leased: str, token: str) -> None:
        assert race.first.reap() == 1
        late = race.waits(lambda: race.second.finish(leased, token, "completed"))
        race.first.commit()
        assert late.result() == "lost"
        race.second.commit()
        assert row(race.db, leased)["status"] == "queued"
        assert race.db.execute("select count(*) from public.job_images").fetchone() == {"count": 0}

    def test_that_is_rolled_back_leaves_the_job_to_its_worker(self, race: Race, leased: str, token: str) -> None:
        race.first.reap()
        late = race.waits(lambda: race.second.finish(leased, token, "completed"))
        race.first.rollback()
        assert late.result() == "ok"

    def test_skips_a_lease_that_is_just_being_renewed(self, race: Race, leased: str, token: str) -> None:
        assert race.first.heartbeat(leased, token) == "ok"
        assert race.second.reap() == 0
        race.first.commit()
        race.second.commit()
        assert race.second.reap() == 0, "and then it is alive"

    def test_ends_the_lease_of_a_heartbeat_that_comes_meanwhile(self, race: Race, leased: str, token: str) -> None:
        race.first.reap()
        late = race.waits(lambda: race.second.heartbeat(leased, token))
        race.first.commit()
        assert late.result() == "lost"

    def test_by_two_at_once_happens_once(self, race: Race, leased: str) -> None:
        assert (race.first.reap(), race.second.reap()) == (1, 0)


class TestCancel:
    def test_while_the_job_is_just_being_claimed_waits_and_reaches_the_worker(self, race: Race, job_id: str, token: str) -> None:
        race.first.claim(token)
        cancel = race.waits(lambda: race.second.cancel(job_id))
        race.first.commit()
        assert cancel.result() == 1
        race.second.commit()
        assert row(race.db, job_id)["status"] == "processing"
        assert race.first.heartbeat(job_id, token) == "cancel"

    def test_in_progress_keeps_the_job_from_being_claimed(self, race: Race, job_id: str, token: str) -> None:
        race.first.cancel(job_id)
        assert race.second.claim(token)["jobs"] == []
        race.first.commit()
        race.second.commit()
        assert race.second.claim(token) == {"jobs": [], "more": False, "next_run_in_ms": None}
        assert row(race.db, job_id)["status"] == "cancelled"

    def test_while_the_job_is_just_being_finished_comes_too_late(self, race: Race, leased: str, token: str) -> None:
        race.first.finish(leased, token, "completed")
        cancel = race.waits(lambda: race.second.cancel(leased))
        race.first.commit()
        assert cancel.result() == 0
        race.second.commit()
        assert row(race.db, leased)["cancel_requested_at"] is None

    @pytest.mark.parametrize(
        ("outcome", "status"),
        [("completed", "completed"), ("retry", "cancelled"), ("released", "cancelled"), ("crashed", "cancelled")],
    )
    def test_in_progress_makes_a_finish_wait_and_count_with_it(
        self, race: Race, leased: str, token: str, outcome: str, status: str
    ) -> None:
        race.first.cancel(leased)
        finish = race.waits(lambda: race.second.finish(leased, token, outcome))
        race.first.commit()
        assert finish.result() == "ok"
        race.second.commit()
        assert row(race.db, leased)["status"] == status


class TestInsertAgainstInsert:
    def test_at_the_edge_of_the_quota_exactly_one_passes(self, race: Race) -> None:
        user_id = new_user(race.db)
        insert(race.db, user_id, 199)
        insert(race.first.connection, user_id)
        second = race.waits(lambda: insert(race.second.connection, user_id))
        race.first.commit()
        with pytest.raises(psycopg.Error, match="too many active jobs"):
            second.result()
        race.second.rollback()
        assert race.db.execute("select count(*) from public.jobs").fetchone() == {"count": 200}

    def test_at_the_edge_of_the_quota_the_second_passes_if_the_first_is_rolled_back(self, race: Race) -> None:
        user_id = new_user(race.db)
        insert(race.db, user_id, 199)
        insert(race.first.connection, user_id)
        second = race.waits(lambda: insert(race.second.connection, user_id))
        race.first.rollback()
        assert len(second.result()) == 1

    def test_under_one_idempotency_key_exactly_one_passes(self, race: Race) -> None:
        user_id = new_user(race.db)
        insert(race.first.connection, user_id, idempotency_key="click-1")
        second = race.waits(lambda: insert(race.second.connection, user_id, idempotency_key="click-1"))
        race.first.commit()
        with pytest.raises(psycopg.errors.UniqueViolation, match="jobs_idempotency_key_is_unique_per_user"):
            second.result()

    def test_of_one_user_come_one_after_the_other_in_virtual_time(self, race: Race) -> None:
        user_id = new_user(race.db)
        insert(race.first.connection, user_id)
        second = race.waits(lambda: insert(race.second.connection, user_id))
        race.first.commit()
        second.result()
        race.second.commit()
        assert race.db.execute("select count(distinct fair_key) from private.leases").fetchone() == {"count": 2}

    def test_of_two_users_do_not_wait_for_each_other(self, race: Race) -> None:
        insert(race.first.connection, new_user(race.db), idempotency_key="click-1")
        assert insert(race.second.connection, new_user(race.db), idempotency_key="click-1")
