"""Whom an insert wakes: everybody in a small fleet, and a few shards of a large one."""

from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import pytest
from supabase import Client

from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import SHARDS, Wakeup
from tests.integration.conftest import Database
from tests.integration.test_queue_functions import Caller, insert, new_user
from tests.processes import environ

TARGET = "to-be-woken"  # no worker listens to it
EVERYBODY = f"worker:{TARGET}"
TOPICS = {EVERYBODY} | {f"{EVERYBODY}:{shard}" for shard in range(SHARDS)}


class Wakes:
    """What was told on the target's topics since this was made."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._before = self._all()

    def told(self) -> Counter[str]:
        return self._all() - self._before

    def _all(self) -> Counter[str]:
        query = "select topic from realtime.messages where topic like %s and event = 'wake' and private"
        return Counter(row["topic"] for row in self._db.execute(query, (f"{EVERYBODY}%",)).fetchall())


@pytest.fixture
def wakes(db: Database) -> Iterator[Wakes]:
    yield Wakes(db)
    db.execute("delete from public.workers where target_worker = %s", (TARGET,))


@pytest.fixture
def user_id(db: Database) -> str:
    return new_user(db)


def workers(db: Database, number: int, *, idle: str | None = "1 minute", state: str = "ready", seen: str = "1 second") -> None:
    db.execute(
        "insert into public.workers (id, target_worker, host, version, state, idle_since, last_seen_at)"
        " select gen_random_uuid(), %s, 'h', '1', %s, now() - %s::interval, now() - %s::interval from generate_series(1, %s)",
        (TARGET, state, idle, seen, number),
    )


def test_one_statement_wakes_once_however_many_rows_it_inserts(db: Database, wakes: Wakes, user_id: str) -> None:
    insert(db, user_id, 100, target_worker=TARGET)
    assert wakes.told() == {EVERYBODY: 1}


def test_nobody_is_woken_while_fifty_others_wait_already(db: Database, wakes: Wakes, user_id: str) -> None:
    insert(db, new_user(db), 49, target_worker=TARGET)
    insert(db, user_id, target_worker=TARGET)
    insert(db, user_id, target_worker=TARGET, run_at="2100-01-01")
    assert wakes.told() == {EVERYBODY: 3}, "49 others, and 50 with one that is put off"
    insert(db, user_id, 3, target_worker=TARGET)
    assert wakes.told() == {EVERYBODY: 3}


def test_while_few_are_idle_everybody_hears(db: Database, wakes: Wakes, user_id: str) -> None:
    workers(db, 12)
    workers(db, 500, idle=None)
    workers(db, 500, seen="2 minutes")
    workers(db, 500, state="stopped")
    insert(db, user_id, target_worker=TARGET)
    assert wakes.told() == {EVERYBODY: 1}


@pytest.mark.parametrize(("idle", "jobs", "shards"), [(13, 1, 10), (64, 1, 2), (24, 2, None), (1000, 1, 1), (1000, 9, 2)])
def test_of_many_idle_ones_about_four_hear_of_each_job(
    db: Database, wakes: Wakes, user_id: str, idle: int, jobs: int, shards: int | None
) -> None:
    workers(db, idle)
    insert(db, user_id, jobs, target_worker=TARGET)
    told = wakes.told()
    assert told == {EVERYBODY: 1} if shards is None else len(told) == told.total() == shards
    assert told.keys() <= TOPICS


def test_each_shard_has_its_turn(db: Database, wakes: Wakes, user_id: str) -> None:
    workers(db, 32)
    for _ in range(150):  # 4 of 32 at a time: that one of them is never told has a chance of 1 in 10 million
        insert(db, user_id, target_worker=TARGET)
        db.execute("delete from public.jobs where target_worker = %s", (TARGET,))
    assert wakes.told().keys() == TOPICS - {EVERYBODY}, "or some workers would be deaf"


def test_a_job_that_is_given_back_wakes_as_a_new_one(db: Database, service: Client, wakes: Wakes, user_id: str) -> None:
    workers(db, 1000)
    [job_id] = insert(db, user_id, target_worker=TARGET)
    token = str(uuid4())
    Caller(service).call("claim_jobs", p_worker="w", p_target=TARGET, p_job_types=["sdxl_image_fast"], p_token=token)
    assert Caller(service).finish(job_id, token, "released") == "ok"
    assert wakes.told().total() == 2
    assert EVERYBODY not in wakes.told()


def test_a_worker_hears_what_is_for_all_and_one_shard(supabase: EmbeddedSupabase, db: Database) -> None:
    settings = Settings.from_env(environ(supabase, target_worker=TARGET))
    with Wakeup(settings, on_cancel=lambda _: None) as wakeup:
        assert wakeup.wait_connected(10)
        for topic in sorted(TOPICS - {EVERYBODY}):
            db.execute("select realtime.send('{}', 'wake', %s, true)", (topic,))
        db.execute("select realtime.send('{}', 'wake', %s, true)", (EVERYBODY,))
        while wakeup.heard < 2:  # messages come in their order, so none of the others can come later
            wakeup.wait(5)
        assert wakeup.heard == 2
