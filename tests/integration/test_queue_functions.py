"""The queue functions keep their promises, called as the worker calls them: through REST with the service key."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import psycopg
import psycopg.rows
import pytest
from postgrest.exceptions import APIError
from supabase import Client

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, User, sign_up

TARGET = "by-hand"  # no worker listens to it


@pytest.fixture
def user(supabase: EmbeddedSupabase) -> User:
    return replace(sign_up(supabase), target=TARGET)


@pytest.fixture
def other(supabase: EmbeddedSupabase) -> User:
    return replace(sign_up(supabase), target=TARGET)


class Caller:
    """A worker's side of the queue functions."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def claim(self, token: str, limit: int = 1, lease_seconds: int = 60, worker: str = "w") -> dict[str, Any]:
        answer: dict[str, Any] = self.call(
            "claim_jobs",
            p_worker=worker,
            p_target=TARGET,
            p_job_types=["sdxl_image_fast"],
            p_token=token,
            p_limit=limit,
            p_lease_seconds=lease_seconds,
        )
        return answer

    def heartbeat(self, job_id: str, token: str, **more: Any) -> str:
        return cast("str", self.call("heartbeat_jobs", p_ids=[job_id], p_token=token, **more)[0]["verdict"])

    def finish(self, job_id: str, token: str, outcome: str, **more: Any) -> str:
        return cast("str", self.call("finish_job", p_id=job_id, p_token=token, p_outcome=outcome, **more))

    def call(self, function: str, **arguments: Any) -> Any:
        return self.client.rpc(function, arguments).execute().data


@pytest.fixture
def caller(service: Client) -> Caller:
    return Caller(service)


def new_user(db: Database) -> str:
    """Somebody of whom only the id matters."""
    user_id = str(uuid4())
    db.execute("insert into auth.users (id, email) values (%s, %s)", (user_id, f"{user_id}@example.com"))
    return user_id


def insert(db: Database, user_id: str, count: int = 1, **columns: Any) -> list[str]:
    """The ids of `count` rows that the user inserts in one statement; `columns` may be those that only the service may set."""
    row = {"user_id": user_id, "job_type": "sdxl_image_fast", "prompt": "x", "target_worker": TARGET} | columns
    names, values = ", ".join(row), ", ".join(["%s"] * len(row))
    query = f"insert into public.jobs ({names}) select {values} from generate_series(1, {count}) returning id::text"
    return [made["id"] for made in db.execute(query.encode(), list(row.values())).fetchall()]


def wakes(db: Database) -> int:
    return messages(db, f"worker:{TARGET}", "wake")


def messages(db: Database, topic: str, event: str) -> int:
    query = "select count(*) as sent from realtime.messages where topic = %s and event = %s and private"
    return cast("int", cast("dict[str, Any]", db.execute(query, (topic, event)).fetchone())["sent"])


def image(index: int = 0) -> dict[str, Any]:
    return {
        "index": index,
        "bucket": "sdxl_image_fast",
        "path": f"u/j/1-{index}.png",
        "thumbnail_path": f"u/j/1-{index}.thumb.webp",
        "seed": 7,
        "width": 128,
        "height": 128,
        "mime_type": "image/png",
        "bytes": 9,
        "sha256": "0" * 64,
    }


def expire(db: Database) -> None:
    db.execute("update private.leases set expires_at = now() - interval '1 s' where state = 'held'")


def lease_of(db: Database, job_id: str) -> dict[str, Any]:
    return cast("dict[str, Any]", db.execute("select * from private.leases where job_id = %s", (job_id,)).fetchone())


def due(db: Database) -> None:
    db.execute("update public.jobs set run_at = now() where status = 'queued'")
    db.execute("update private.leases set avoid_until = null where avoid_until is not null")


def test_a_claim_takes_the_job_under_a_lease_and_charges_an_attempt(db: Database, user: User, caller: Caller) -> None:
    job = user.insert()
    token = str(uuid4())
    answer = caller.claim(token)
    assert [row["id"] for row in answer["jobs"]] == [job["id"]]
    row = db.execute(
        "select status, attempts, worker, token::text, state, expires_at > now() as holds"
        " from public.jobs join private.leases on job_id = id"
    ).fetchone()
    assert row == {"status": "processing", "attempts": 1, "worker": "w", "token": token, "state": "held", "holds": True}


def test_a_claim_made_again_after_a_lost_reply_returns_the_same_job(db: Database, user: User, caller: Caller) -> None:
    user.insert()
    user.insert()
    token = str(uuid4())
    first, again = caller.claim(token), caller.claim(token)
    assert [row["id"] for row in first["jobs"]] == [row["id"] for row in again["jobs"]]
    assert again["jobs"][0]["attempts"] == 1


def test_an_empty_queue_says_so_and_when_to_come_back(db: Database, user: User, caller: Caller) -> None:
    assert caller.claim(str(uuid4())) == {"jobs": [], "more": False, "next_run_in_ms": None}
    user.insert()
    db.execute("update public.jobs set run_at = now() + interval '60 s'")
    answer = caller.claim(str(uuid4()))
    assert (answer["jobs"], answer["more"]) == ([], False)
    assert 50_000 < answer["next_run_in_ms"] <= 60_000


def test_a_job_for_other_workers_or_of_other_types_is_left(db: Database, user: User, caller: Caller) -> None:
    user.insert(target_worker="flux")
    user.insert(job_type="sdxl_image_high")
    assert caller.claim(str(uuid4()))["jobs"] == []


def test_the_end_and_its_images_appear_together_and_once(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    with pytest.raises(APIError, match="needs as many images"):
        caller.finish(job_id, token, "completed", p_images=[])
    assert caller.finish(job_id, token, "completed", p_images=[image()], p_metrics={"generation_time": 1.5}) == "ok"
    assert caller.finish(job_id, token, "completed", p_images=[image()]) == "already"
    assert caller.finish(job_id, token, "failed", p_error={"code": "x", "message": "y"}) == "lost"
    row = user.job(job_id)
    assert (row["status"], row["progress"], row["metrics"]) == ("completed", 100, {"generation_time": 1.5})
    assert row["completed_at"]
    assert [shown["path"] for shown in user.images(job_id)] == ["u/j/1-0.png"]


def test_a_stale_worker_is_fenced_off(db: Database, user: User, caller: Caller) -> None:
    job_id, stale, owner = user.insert()["id"], str(uuid4()), str(uuid4())
    caller.claim(stale)
    expire(db)
    assert caller.call("reap_jobs", p_target=TARGET) == 1
    due(db)
    caller.claim(owner)
    assert caller.heartbeat(job_id, stale) == "lost"
    assert caller.finish(job_id, stale, "completed", p_images=[image()]) == "lost"
    assert user.images(job_id) == []
    assert caller.heartbeat(job_id, owner) == "ok"
    assert caller.finish(job_id, owner, "completed", p_images=[image()]) == "ok"


def test_a_finish_after_the_lease_was_reaped_is_lost_even_before_another_claim(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    expire(db)
    caller.call("reap_jobs", p_target=TARGET)
    assert caller.finish(job_id, token, "retry") == "lost"


def test_a_heartbeat_renews_the_lease_and_leaves_the_job_alone(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token, lease_seconds=10)
    before = everything(db)
    assert caller.heartbeat(job_id, token, p_lease_seconds=100) == "ok"
    row = db.execute("select expires_at > now() + interval '50 s' as renewed from private.leases").fetchone()
    assert row == {"renewed": True}
    assert everything(db) == before


class TestACrash:
    def crash(self, caller: Caller, job_id: str) -> str:
        token = str(uuid4())
        assert [row["id"] for row in caller.claim(token)["jobs"]] == [job_id], "it waits at once, without a pause"
        return caller.finish(job_id, token, "crashed", p_error={"code": "gpu_lost", "message": "m"})

    def test_gives_the_attempt_back_and_requeues_at_once(self, db: Database, user: User, caller: Caller) -> None:
        job_id, woken = user.insert()["id"], wakes(db)
        assert self.crash(caller, job_id) == "ok"
        row = user.job(job_id)
        lease = lease_of(db, job_id)
        assert (row["status"], row["attempts"], lease["crashes"], lease["claims"]) == ("queued", 0, 1, 1)
        assert row["error_code"] == "gpu_lost"
        assert wakes(db) == woken + 1, "and the others hear of it"

    def test_the_second_in_a_row_fails_the_job_as_poison_and_charges_it(self, db: Database, user: User, caller: Caller) -> None:
        job_id = user.insert()["id"]
        self.crash(caller, job_id)
        assert self.crash(caller, job_id) == "ok"
        row = user.job(job_id)
        assert (row["status"], row["error_code"], row["attempts"]) == ("failed", "poison_job", 1)
        assert lease_of(db, job_id)["crashes"] == 2
        assert row["completed_at"]

    def test_a_retry_in_between_begins_the_row_anew(self, db: Database, user: User, caller: Caller) -> None:
        job_id, token = user.insert()["id"], str(uuid4())
        self.crash(caller, job_id)
        caller.claim(token)
        caller.finish(job_id, token, "retry")
        due(db)
        self.crash(caller, job_id)
        assert (user.job(job_id)["status"], lease_of(db, job_id)["crashes"]) == ("queued", 1)

    def test_a_release_in_between_does_not(self, db: Database, user: User, caller: Caller) -> None:
        job_id, token = user.insert()["id"], str(uuid4())
        self.crash(caller, job_id)
        caller.claim(token)
        caller.finish(job_id, token, "released")
        self.crash(caller, job_id)
        assert user.job(job_id)["error_code"] == "poison_job"

    @pytest.mark.parametrize("earlier_crashes", [0, 1])
    def test_of_a_cancelled_job_ends_it_as_cancelled(self, db: Database, user: User, caller: Caller, earlier_crashes: int) -> None:
        job_id, token = user.insert()["id"], str(uuid4())
        for _ in range(earlier_crashes):
            self.crash(caller, job_id)
        caller.claim(token)
        cancel(user, job_id)
        assert caller.finish(job_id, token, "crashed") == "ok"
        assert user.job(job_id)["status"] == "cancelled"


class TestAFault:
    """`faulted`: a worker whose own fault it may be gives the job back, and another one gets it first."""

    def fault(self, caller: Caller, job_id: str, worker: str = "w", outcome: str = "faulted") -> str:
        token = str(uuid4())
        assert [row["id"] for row in caller.claim(token, worker=worker)["jobs"]] == [job_id]
        return caller.finish(job_id, token, outcome, p_error={"code": "blank_image", "message": "m"})

    @pytest.fixture
    def another(self, db: Database) -> Iterator[str]:
        """Another worker of the same target, ready and alive."""
        db.execute(
            "insert into public.workers (id, target_worker, host, version, state) values ('another', %s, 'h', '1', 'ready')",
            (TARGET,),
        )
        yield "another"
        db.execute("delete from public.workers where id = 'another'")

    def avoided(self, db: Database, job_id: str) -> bool:
        return lease_of(db, job_id)["avoid_until"] is not None

    def test_gives_the_attempt_back_and_says_why(self, db: Database, user: User, caller: Caller) -> None:
        job_id, woken = user.insert()["id"], wakes(db)
        assert self.fault(caller, job_id) == "ok"
        row = user.job(job_id)
        assert (row["status"], row["attempts"], row["error_code"], row["error_message"]) == ("queued", 0, "blank_image", "m")
        assert lease_of(db, job_id)["faulted_on"] == ["w"]
        assert wakes(db) == woken + 1, "and the others hear of it"
        events = user.client.table("job_events").select("status, worker, error_code").order("id").execute().data
        assert events[-1] == {"status": "queued", "worker": "w", "error_code": "blank_image"}

    def test_puts_the_job_off_for_its_worker_alone(self, db: Database, user: User, caller: Caller, another: str) -> None:
        job_id = user.insert()["id"]
        self.fault(caller, job_id)
        answer = caller.claim(str(uuid4()))
        assert (answer["jobs"], answer["more"]) == ([], False)
        assert 50_000 < answer["next_run_in_ms"] <= 60_000, "it need not ask again before"
        assert caller.claim(str(uuid4()), worker=another)["jobs"][0]["id"] == job_id

    def test_leaves_other_jobs_to_its_worker(self, db: Database, user: User, caller: Caller, another: str) -> None:
        job_id, next_id = user.insert()["id"], user.insert()["id"]
        self.fault(caller, job_id)
        assert [row["id"] for row in caller.claim(str(uuid4()), limit=2)["jobs"]] == [next_id]

    def test_comes_back_to_its_worker_after_a_minute(self, db: Database, user: User, caller: Caller, another: str) -> None:
        job_id = user.insert()["id"]
        self.fault(caller, job_id)
        due(db)
        assert [row["id"] for row in caller.claim(str(uuid4()))["jobs"]] == [job_id]

    @pytest.mark.parametrize(
        "change",
        [
            "state = 'draining'",
            "state = 'starting'",
            "last_seen_at = now() - interval '1 h'",
            "target_worker = 'other'",
            "id = 'w'",
        ],
    )
    def test_a_crash_puts_the_job_off_only_where_another_worker_could_take_it(
        self, db: Database, user: User, caller: Caller, another: str, change: str
    ) -> None:
        try:
            job_id = user.insert()["id"]
            assert self.fault(caller, job_id, outcome="crashed") == "ok"
            assert self.avoided(db, job_id)
            db.execute(f"update public.workers set {change} where id = 'another'".encode())
            job_id = user.insert()["id"]
            assert self.fault(caller, job_id, outcome="crashed") == "ok"
            assert not self.avoided(db, job_id)
            assert [row["id"] for row in caller.claim(str(uuid4()))["jobs"]] == [job_id]
        finally:
            db.execute("delete from public.workers where id = 'w'")

    def test_of_two_workers_is_free_for_both(self, db: Database, user: User, caller: Caller) -> None:
        job_id = user.insert()["id"]
        self.fault(caller, job_id)
        self.fault(caller, job_id, "another")
        assert (user.job(job_id)["attempts"], lease_of(db, job_id)["faulted_on"]) == (0, ["w", "another"])

    def test_is_charged_from_the_second_one_of_a_worker_on_and_fails_the_job_in_the_end(
        self, db: Database, user: User, caller: Caller
    ) -> None:
        job_id = user.insert()["id"]
        seen = []
        for _ in range(4):
            due(db)
            self.fault(caller, job_id)
            seen.append((user.job(job_id)["status"], user.job(job_id)["attempts"]))
        assert seen == [("queued", 0), ("queued", 1), ("queued", 2), ("failed", 3)]
        assert user.job(job_id)["error_code"] == "blank_image"

    def test_of_ever_new_workers_is_charged_once_max_attempts_of_them_gave_it_back(
        self, db: Database, user: User, caller: Caller
    ) -> None:
        job_id, painted = user.insert()["id"], 0
        while user.job(job_id)["status"] == "queued":
            due(db)
            self.fault(caller, job_id, f"w{painted}")
            painted += 1
        assert (user.job(job_id)["status"], painted) == ("failed", 6)

    def test_pauses_the_job_when_it_is_charged(self, db: Database, user: User, caller: Caller) -> None:
        job_id = user.insert()["id"]
        for _ in range(2):
            due(db)
            self.fault(caller, job_id)
        row = db.execute("select run_at > created_at as later from public.jobs").fetchone()
        assert row == {"later": True}

    def test_tells_the_worker_at_its_claim_whether_it_would_be_charged(self, db: Database, user: User, caller: Caller) -> None:
        self.fault(caller, user.insert()["id"])
        due(db)
        token = str(uuid4())
        assert caller.claim(token)["jobs"][0]["fault_is_charged"] is True
        assert caller.claim(token, worker="another")["jobs"][0]["fault_is_charged"] is False

    def test_of_a_cancelled_job_ends_it_as_cancelled(self, db: Database, user: User, caller: Caller) -> None:
        job_id, token = user.insert()["id"], str(uuid4())
        caller.claim(token)
        cancel(user, job_id)
        assert caller.finish(job_id, token, "faulted", p_error={"code": "blank_image", "message": "m"}) == "ok"
        assert (user.job(job_id)["status"], user.job(job_id)["error_code"]) == ("cancelled", None)


OUTCOMES = ["completed", "failed", "retry", "cancelled", "released", "crashed", "faulted"]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("last_chance", [False, True], ids=["first", "last chance"])
def test_every_outcome_told_twice_is_known_already_and_has_no_further_effect(
    db: Database, user: User, caller: Caller, outcome: str, last_chance: bool
) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    if last_chance:
        db.execute("update public.jobs set max_attempts = 1")
        db.execute("update private.leases set crashes = 1, faulted_on = array['w']")
    caller.claim(token)
    told = {"p_images": [image()] if outcome == "completed" else [], "p_error": {"code": "some_error", "message": "m"}}
    assert caller.finish(job_id, token, outcome, **told) == "ok"
    before = everything(db)
    assert caller.finish(job_id, token, outcome, **told) == "already"
    assert everything(db) == before


def everything(db: Database) -> list[list[dict[str, Any]]]:
    tables = [b"public.jobs", b"public.job_images", b"public.job_events", b"realtime.messages"]
    return [db.execute(b"select xmin, ctid, * from " + table).fetchall() for table in tables]


def test_a_claim_made_again_renews_its_lease(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token, lease_seconds=10)
    again = caller.claim(token, lease_seconds=1000)["jobs"]
    assert [(row["id"], row["claims"], row["attempts"]) for row in again] == [(job_id, 1, 1)]
    row = db.execute("select expires_at > now() + interval '900 s' as renewed from private.leases").fetchone()
    assert row == {"renewed": True}


def test_claims_counts_every_lease_so_that_no_two_write_to_one_object(db: Database, user: User, caller: Caller) -> None:
    job_id, seen = user.insert()["id"], []
    for outcome in ["released", "crashed", "retry", None, "released"]:
        token = str(uuid4())
        due(db)
        seen.append(caller.claim(token)["jobs"][0]["claims"])
        if outcome:
            caller.finish(job_id, token, outcome)
        else:
            expire(db)
            caller.call("reap_jobs", p_target=TARGET)
    assert seen == [1, 2, 3, 4, 5]
    assert (lease_of(db, job_id)["claims"], user.job(job_id)["attempts"]) == (5, 2), "the retry and the lost lease"


def test_a_claim_takes_as_many_as_asked_for_in_order(db: Database, caller: Caller) -> None:
    ids = insert(db, new_user(db), 5)
    order = [row["id"] for row in db.execute("select job_id::text as id from private.leases order by fair_key").fetchall()]
    assert sorted(order) == sorted(ids)
    token = str(uuid4())
    assert [row["id"] for row in caller.claim(token, limit=3)["jobs"]] == order[:3]
    assert [row["id"] for row in caller.claim(token, limit=3)["jobs"]] == order[:3], "the same call again"
    assert [row["id"] for row in caller.claim(str(uuid4()), limit=3)["jobs"]] == order[3:]


def test_a_user_can_ask_how_many_jobs_come_before_their_own(db: Database, user: User, other: User, caller: Caller) -> None:
    def ahead(asker: User, job_id: str) -> object:
        return asker.client.rpc("jobs_ahead", {"p_job": job_id}).execute().data

    insert(db, other.id, 3)
    later = [user.insert()["id"] for _ in range(2)]
    insert(db, other.id, target_worker="another")
    insert(db, other.id, run_at="2100-01-01")
    insert(db, other.id, priority=0)
    claimed: list[str] = []
    while True:
        told = {job: ahead(user, job) for job in later}
        [next_one] = caller.claim(str(uuid4()))["jobs"] or [{"id": None}]
        if next_one["id"] in later:
            assert told[next_one["id"]] == 0, "it is claimed next"
        claimed.append(next_one["id"])
        if next_one["id"] is None:
            break
        for job in later:
            seen = ahead(user, job)
            assert seen is None if job in claimed else seen == cast("int", told[job]) - 1, "one less with each claim before it"
    waiting = user.insert()["id"]
    assert ahead(other, waiting) is None, "of others' jobs nothing is said"


def test_the_count_of_jobs_before_ones_own_ends_at_a_thousand(db: Database, user: User) -> None:
    for _ in range(6):
        insert(db, new_user(db), 200)
    db.execute("update private.leases set fair_key = -1")
    assert user.client.rpc("jobs_ahead", {"p_job": user.insert()["id"]}).execute().data == 1000


def test_claims_look_for_dead_leases_once_a_second(db: Database, user: User, caller: Caller) -> None:
    def status_after_a_claim() -> str:
        expire(db)
        caller.claim(str(uuid4()))
        return cast("str", user.job(job_id)["status"])

    job_id = user.insert()["id"]
    caller.claim(str(uuid4()))
    db.execute("update private.reaping set next_at = now() + interval '1 s' where target_worker = %s", (TARGET,))
    assert status_after_a_claim() == "processing", "somebody has just looked"
    db.execute("update private.reaping set next_at = now() where target_worker = %s", (TARGET,))
    assert status_after_a_claim() == "queued"


def test_a_clock_that_jumped_back_does_not_stop_the_search_for_dead_leases(db: Database, user: User, caller: Caller) -> None:
    job_id = user.insert()["id"]
    caller.claim(str(uuid4()))
    expire(db)
    db.execute("update private.reaping set next_at = now() + interval '1 hour' where target_worker = %s", (TARGET,))
    caller.claim(str(uuid4()))
    assert user.job(job_id)["status"] == "queued"


def test_a_job_whose_workers_die_fails_after_its_attempts(db: Database, user: User, caller: Caller) -> None:
    job_id = user.insert()["id"]
    for _ in range(3):
        due(db)
        assert caller.claim(str(uuid4()))["jobs"]
        expire(db)
        caller.call("reap_jobs", p_target=TARGET)
    row = user.job(job_id)
    assert (row["status"], row["attempts"], row["error_code"]) == ("failed", 3, "lease_expired")


def test_a_release_gives_the_attempt_back_and_a_retry_does_not(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    assert caller.finish(job_id, token, "released") == "ok"
    assert (user.job(job_id)["status"], user.job(job_id)["attempts"]) == ("queued", 0)
    token = str(uuid4())
    assert caller.claim(token)["jobs"], "at once"
    assert caller.finish(job_id, token, "retry", p_error={"code": "out_of_memory", "message": "m"}) == "ok"
    row = user.job(job_id)
    assert (row["status"], row["attempts"], row["error_code"]) == ("queued", 1, "out_of_memory")


def test_cancelling(db: Database, user: User, caller: Caller) -> None:
    queued = user.insert()["id"]
    cancel(user, queued)
    assert user.job(queued)["status"] == "cancelled", "a queued job ends at once"
    running, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    cancel(user, running)
    assert user.job(running)["status"] == "processing"
    assert caller.heartbeat(running, token) == "cancel"
    assert caller.finish(running, token, "retry") == "ok"
    assert user.job(running)["status"] == "cancelled", "a retry of what nobody wants ends it"


def cancel(user: User, job_id: str) -> None:
    user.client.table("jobs").update({"cancel_requested_at": "2000-01-01"}).eq("id", job_id).execute()


def test_a_finished_row_never_changes(db: Database, user: User, service: Client) -> None:
    job_id = user.insert()["id"]
    cancel(user, job_id)
    with pytest.raises(APIError, match="never changes"):
        service.table("jobs").update({"status": "queued"}).eq("id", job_id).execute()


def test_the_history_tells_it_all(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    caller.heartbeat(job_id, token)
    caller.finish(job_id, token, "failed", p_error={"code": "invalid_reference", "message": "m"})
    events = user.client.table("job_events").select("status, attempt, worker, error_code").order("id").execute().data
    assert events == [
        {"status": "queued", "attempt": 0, "worker": None, "error_code": None},
        {"status": "processing", "attempt": 1, "worker": "w", "error_code": None},
        {"status": "failed", "attempt": 1, "worker": "w", "error_code": "invalid_reference"},
    ]


class TestFairOrder:
    """In virtual time a job begins where the last one that is processing, or its user's last one, ends, and goes by its own end."""

    def order(self, caller: Caller) -> list[str]:
        return [row["user_id"] for row in caller.claim(str(uuid4()), limit=50)["jobs"]]

    def test_a_flood_delays_ten_later_singles_by_a_place_each(self, db: Database, caller: Caller) -> None:
        flood, singles = new_user(db), [new_user(db) for _ in range(10)]
        insert(db, flood, 100)
        for single in singles:
            insert(db, single)
        assert set(singles) <= set(self.order(caller)[:12])

    def test_a_flood_by_many_connections_at_once_is_a_flood_too(
        self, supabase: EmbeddedSupabase, db: Database, caller: Caller
    ) -> None:
        flood, single, together = new_user(db), new_user(db), threading.Barrier(8)

        def pour() -> None:
            with psycopg.connect(supabase.db_url, autocommit=True, row_factory=psycopg.rows.dict_row) as own:
                together.wait()
                for _ in range(10):
                    insert(own, flood)

        threads = [threading.Thread(target=pour) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        insert(db, single)
        assert single in self.order(caller)[:3]
        keys = db.execute("select count(distinct fair_key) from private.leases where user_id = %s", (flood,)).fetchone()
        assert keys == {"count": 80}, "one after the other, as if by one connection"

    def test_a_flood_into_a_queue_with_nobody_waiting_starts_where_the_running_job_is(self, db: Database, caller: Caller) -> None:
        early, flood = new_user(db), new_user(db)
        insert(db, early, 30)
        token = str(uuid4())
        *done, _running = caller.claim(token, limit=30)["jobs"]
        for row in done:
            caller.finish(row["id"], token, "failed", p_error={"code": "x", "message": "m"})
        insert(db, flood, 40)
        insert(db, early)
        assert early in self.order(caller)[:3]

    def test_a_dearer_job_counts_for_more(self, db: Database, caller: Caller) -> None:
        big, small = new_user(db), new_user(db)
        for _ in range(5):
            insert(db, big, batch_size=6)
        for _ in range(10):
            insert(db, small, batch_size=1)
        assert self.order(caller)[1:7].count(small) >= 5

    def test_a_small_job_goes_before_a_large_one_that_came_a_moment_earlier(self, db: Database, caller: Caller) -> None:
        large, small = new_user(db), new_user(db)
        insert(db, new_user(db))
        caller.claim(str(uuid4()))
        insert(db, large, batch_size=6)
        insert(db, small)
        assert self.order(caller) == [small, large]

    def test_a_single_comes_before_what_waits_of_a_flood_of_large_ones(self, db: Database, caller: Caller) -> None:
        flood, single = new_user(db), new_user(db)
        insert(db, flood, 20, batch_size=6)
        caller.claim(str(uuid4()))
        insert(db, single)
        assert self.order(caller)[0] == single

    def test_a_stream_of_newcomers_does_not_keep_a_large_job_waiting(self, db: Database, caller: Caller) -> None:
        """Three wait at any time, with a sixth of its cost: it waits for about as many of each as have its cost together."""
        large = new_user(db)
        for _ in range(3):
            insert(db, new_user(db))
        insert(db, large, batch_size=6)
        order: list[str] = []
        while large not in order and len(order) < 40:
            order.append(caller.claim(str(uuid4()))["jobs"][0]["user_id"])
            insert(db, new_user(db))
        assert 3 * 3 < len(order) < 3 * 8

    def test_each_priority_has_an_order_of_its_own(self, db: Database, caller: Caller) -> None:
        flood, other = new_user(db), new_user(db)
        insert(db, flood, 50, priority=100)
        insert(db, other, 20, priority=10)
        insert(db, flood, 1, priority=10)
        order = self.order(caller)
        assert flood in order[:3], "what waits at another priority is not held against it"
        assert order[:21].count(other) == 20, "the lower number goes first"


class TestADelayedJob:
    @pytest.fixture
    def job_id(self, db: Database) -> str:
        return insert(db, new_user(db), run_at="2100-01-01")[0]

    def test_is_not_claimed_early(self, job_id: str, caller: Caller) -> None:
        answer = caller.claim(str(uuid4()))
        assert (answer["jobs"], answer["more"]) == ([], False)
        assert answer["next_run_in_ms"] > 1e9

    def test_is_claimed_when_its_time_has_come(self, db: Database, job_id: str, caller: Caller) -> None:
        due(db)
        assert [row["id"] for row in caller.claim(str(uuid4()))["jobs"]] == [job_id]

    def test_lets_others_go_first_whatever_its_place(self, db: Database, job_id: str, caller: Caller) -> None:
        db.execute("update private.leases set fair_key = -1")
        other = insert(db, new_user(db))
        assert [row["id"] for row in caller.claim(str(uuid4()))["jobs"]] == other

    def test_wakes_the_workers_at_its_insert_who_then_learn_when_to_come_back(self, db: Database, caller: Caller) -> None:
        woken = wakes(db)
        insert(db, new_user(db), run_at="2100-01-01")
        assert wakes(db) == woken + 1

    def test_the_soonest_decides_when_to_come_back(self, db: Database, job_id: str, caller: Caller) -> None:
        insert(db, new_user(db))
        db.execute("update public.jobs set run_at = now() + interval '5 s' where id <> %s", (job_id,))
        assert 3_000 < caller.claim(str(uuid4()))["next_run_in_ms"] <= 5_000


def test_the_user_hears_every_change_once(db: Database, user: User, caller: Caller) -> None:
    topic, token, job_id = f"user:{user.id}", str(uuid4()), user.insert()["id"]
    caller.claim(token)
    for _ in range(2):
        caller.heartbeat(job_id, token)  # which is nothing to hear
    caller.finish(job_id, token, "completed", p_images=[image()])
    heard = db.execute("select event, payload from realtime.messages where topic = %s order by inserted_at", (topic,)).fetchall()
    assert [(row["event"], row["payload"]["record"]["status"], row["payload"]["record"]["progress"]) for row in heard] == [
        ("INSERT", "queued", 0),
        ("UPDATE", "processing", 0),
        ("UPDATE", "completed", 100),
    ]
    last = heard[-1]["payload"]
    assert [shown["path"] for shown in last["images"]] == ["u/j/1-0.png"]
    assert last["old_record"] == {"id": job_id, "status": "processing", "progress": 0}
    assert last["record"] == user.job(job_id), "no more and no less than its row"


def test_nothing_but_a_claim_makes_a_job_processing(db: Database, user: User, caller: Caller) -> None:
    job_id = user.insert()["id"]
    with pytest.raises(psycopg.errors.CheckViolation, match="processing without a lease"):
        db.execute("update public.jobs set status = 'processing' where id = %s", (job_id,))
    with pytest.raises(psycopg.errors.CheckViolation, match="processing without a lease"):
        insert(db, user.id, status="processing")
    assert lease_of(db, job_id)["state"] == "waiting"


def test_the_lease_of_a_job_that_an_operator_ends_is_over(db: Database, user: User, caller: Caller) -> None:
    job_id, token = user.insert()["id"], str(uuid4())
    caller.claim(token)
    db.execute("update public.jobs set status = 'failed', error_code = 'x', completed_at = now() where id = %s", (job_id,))
    assert (lease_of(db, job_id)["state"], lease_of(db, job_id)["expires_at"]) == ("ended", None)
    assert caller.heartbeat(job_id, token) == "lost"
    assert caller.finish(job_id, token, "completed", p_images=[image()]) == "lost"


def test_a_waiting_job_can_be_moved(db: Database, user: User, caller: Caller) -> None:
    first, second = insert(db, new_user(db))[0], insert(db, new_user(db))[0]
    db.execute("update public.jobs set priority = 1 where id = %s", (second,))
    assert [row["id"] for row in caller.claim(str(uuid4()))["jobs"]] == [second]
    db.execute("update public.jobs set target_worker = 'other' where id = %s", (first,))
    assert caller.claim(str(uuid4()))["jobs"] == []


def test_a_job_inserted_as_finished_is_never_claimed(db: Database, user: User, caller: Caller) -> None:
    insert(db, user.id, status="completed", completed_at="2026-01-01")
    assert caller.claim(str(uuid4())) == {"jobs": [], "more": False, "next_run_in_ms": None}


class TestTheQuota:
    def test_of_200_active_jobs_is_kept_with_429(self, db: Database, user: User, caller: Caller) -> None:
        insert(db, user.id, 200)
        with pytest.raises(APIError) as refused:
            user.insert()
        assert refused.value.code == "PT429"
        caller.claim(str(uuid4()), limit=10)
        with pytest.raises(APIError, match="too many active jobs"):
            user.insert()

    def test_is_each_users_own_and_frees_up_with_each_end(self, db: Database, user: User, other: User) -> None:
        ids = insert(db, user.id, 200)
        other.insert()
        cancel(user, ids[0])
        user.insert()

    def test_does_not_stand_in_the_way_of_a_request_made_again(self, db: Database, user: User) -> None:
        insert(db, user.id, 199)
        user.insert(idempotency_key="click-1")
        row = {"job_type": "sdxl_image_fast", "prompt": "x", "target_worker": TARGET, "idempotency_key": "click-1"}
        again = user.client.table("jobs").upsert(row, on_conflict="user_id,idempotency_key", ignore_duplicates=True).execute()
        assert again.data == []


def test_an_insert_made_again_under_its_idempotency_key_adds_no_job(db: Database, user: User) -> None:
    first = user.insert(idempotency_key="click-1")
    row = {"job_type": "sdxl_image_fast", "prompt": "x", "target_worker": TARGET, "idempotency_key": "click-1"}
    again = user.client.table("jobs").upsert(row, on_conflict="user_id,idempotency_key", ignore_duplicates=True).execute()
    assert again.data == []
    assert db.execute("select id::text from public.jobs").fetchall() == [{"id": first["id"]}]


class TestTheSweepForOrphans:
    """`sweep_orphans` names the objects that no job will ever publish."""

    @pytest.fixture(autouse=True)
    def _empty_buckets(self, db: Database) -> None:
        db.execute("delete from storage.objects where bucket_id in ('sdxl_image_fast', 'sdxl_image_high')")
        self.begin_anew(db)

    def begin_anew(self, db: Database) -> None:
        db.execute("update private.sweep set bucket = '', path = '', next_at = now()")

    def upload(self, db: Database, *names: str, bucket: str = "sdxl_image_fast") -> list[str]:
        for name in names:
            db.execute("insert into storage.objects (bucket_id, name) values (%s, %s)", (bucket, name))
        return sorted(names)

    def sweep(self, caller: Caller, **arguments: Any) -> list[str]:
        return [row["path"] for row in caller.call("sweep_orphans", **({"p_pause_seconds": 0} | arguments))]

    def names(self, user_id: str, job_id: str, claim: int = 1) -> list[str]:
        return [f"{user_id}/{job_id}/{claim}-0.png", f"{user_id}/{job_id}/{claim}-0.thumb.webp"]

    def test_finds_what_a_finished_job_did_not_publish_and_not_what_it_did(self, db: Database, user: User, caller: Caller) -> None:
        job_id, token = user.insert()["id"], str(uuid4())
        path, thumbnail = self.upload(db, *self.names(user.id, job_id, claim=2))
        stale = self.upload(db, *self.names(user.id, job_id, claim=1))
        caller.claim(token)
        assert self.sweep(caller) == [], "an active job may still publish"
        caller.finish(job_id, token, "completed", p_images=[image() | {"path": path, "thumbnail_path": thumbnail}])
        assert sorted(self.sweep(caller)) == stale

    def test_leaves_the_objects_of_a_waiting_job(self, db: Database, user: User, caller: Caller) -> None:
        self.upload(db, *self.names(user.id, user.insert()["id"]))
        assert self.sweep(caller) == []

    def test_finds_those_of_a_job_that_was_deleted(self, db: Database, user: User, caller: Caller) -> None:
        orphans = self.upload(db, *self.names(user.id, str(uuid4())))
        assert sorted(self.sweep(caller)) == orphans

    def test_leaves_names_that_no_worker_makes(self, db: Database, user: User, caller: Caller) -> None:
        self.upload(db, "readme.txt", f"{user.id}/cat.png", f"{user.id}/{uuid4()}/cat.png", f"{user.id}/not-a-uuid/1-0.png")
        self.upload(db, *self.names(user.id, str(uuid4())), bucket="reference_images")
        assert self.sweep(caller) == []

    def test_goes_on_where_the_last_one_stopped_and_wraps_at_the_end(self, db: Database, user: User, caller: Caller) -> None:
        orphans = self.upload(db, *(f"{user.id}/{uuid4()}/1-0.png" for _ in range(5)))
        pages = [self.sweep(caller, p_limit=2) for _ in range(4)]
        assert pages == [orphans[:2], orphans[2:4], orphans[4:], orphans[:2]]

    def test_covers_both_buckets(self, db: Database, user: User, caller: Caller) -> None:
        fast = self.upload(db, f"{user.id}/{uuid4()}/1-0.png")
        high = self.upload(db, f"{user.id}/{uuid4()}/1-0.png", bucket="sdxl_image_high")
        rows = caller.call("sweep_orphans", p_pause_seconds=0)
        assert rows == [{"bucket": "sdxl_image_fast", "path": fast[0]}, {"bucket": "sdxl_image_high", "path": high[0]}]

    def test_pauses_between_two_looks_of_the_whole_fleet(self, db: Database, user: User, caller: Caller) -> None:
        orphans = self.upload(db, f"{user.id}/{uuid4()}/1-0.png")
        assert self.sweep(caller, p_pause_seconds=15) == orphans
        assert self.sweep(caller, p_pause_seconds=15) == []
        db.execute("update private.sweep set next_at = now()")
        assert self.sweep(caller, p_pause_seconds=15) == orphans
        db.execute("update private.sweep set next_at = now() + interval '1 hour'")
        assert self.sweep(caller, p_pause_seconds=15) == orphans, "a clock that jumped back does not stop it"

    def test_one_caller_at_a_time(self, supabase: EmbeddedSupabase, db: Database, user: User, caller: Caller) -> None:
        orphans = self.upload(db, f"{user.id}/{uuid4()}/1-0.png")
        with psycopg.connect(supabase.db_url) as other:
            assert len(other.execute("select * from public.sweep_orphans(p_pause_seconds => 0)").fetchall()) == 1
            assert self.sweep(caller) == [], "skipped, and not waited for"
            other.rollback()
        assert self.sweep(caller) == orphans, "what was rolled back is looked at again"


def test_an_insert_never_fails_because_realtime_does(db: Database, user: User) -> None:
    db.execute("alter function realtime.send(jsonb, text, text, boolean) rename to send_away")
    try:
        assert user.insert()["status"] == "queued"
    finally:
        db.execute("alter function realtime.send_away(jsonb, text, text, boolean) rename to send")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("claim_jobs", {"p_worker": "w", "p_target": TARGET, "p_job_types": [], "p_token": str(uuid4())}),
        ("heartbeat_jobs", {"p_ids": [], "p_token": str(uuid4())}),
        ("finish_job", {"p_id": str(uuid4()), "p_token": str(uuid4()), "p_outcome": "completed"}),
        ("reap_jobs", {"p_target": TARGET}),
        ("report_worker", {"p_worker": "w", "p_state": "ready", "p_facts": {}}),
        ("sweep_orphans", {}),
    ],
)
def test_a_client_cannot_call_them(user: User, function: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(APIError, match=f"permission denied for function {function}"):
        user.client.rpc(function, arguments).execute()
