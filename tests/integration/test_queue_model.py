"""A model of the queue against the real one: random users, workers, lost replies, stale tokens and clocks, and after every step the
rows, the images, the history and (at the end) the broadcasts are exactly those that the model expects.

Time does not pass by waiting: all rows are moved into the past. Model times are minutes; nothing is ever due on a whole minute, so
that the milliseconds which really pass decide nothing.

    QUEUE_MODEL_EXAMPLES=5000 pytest tests/integration/test_queue_model.py      # longer, and other examples each time
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule, run_state_machine_as_test
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database

EXAMPLES = os.environ.get("QUEUE_MODEL_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 60),
    stateful_step_count=40,
    derandomize=EXAMPLES is None,  # the same examples in every run of CI
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TYPES = ["sdxl_image_fast", "sdxl_image_high"]
OUTCOMES = ["completed", "failed", "retry", "cancelled", "released", "crashed", "faulted"]
COPIED = ["user_id", "target_worker", "job_type", "priority", "run_at"]  # of jobs, in the lease
FINISHED = {"completed", "failed", "cancelled"}
LEASE, DELAY, PAUSE = 10.5, 30.5, 5.5  # minutes
WORKERS = ["w1", "w2", "w3"]
AVOIDED = 0.9  # minutes: a little less than in the database, since nothing is due on a whole minute


@dataclass(kw_only=True)
class Job:
    """What the model knows of a row."""

    id: UUID
    user: UUID
    job_type: str
    priority: int
    fair_key: float
    batch_size: int
    max_attempts: int
    run_at: float
    status: str = "queued"
    attempts: int = 0
    claims: int = 0
    crashes: int = 0
    faulted_on: list[str] = field(default_factory=list)
    avoid_until: float | None = None
    progress: int = 0
    cancel_requested: bool = False
    error_code: str | None = None
    token: UUID | None = None
    lease_until: float | None = None
    worker: str | None = None
    last_finish: tuple[UUID, str] | None = None  # the token and the outcome of the finish that ended the last lease
    history: list[tuple[str, int, str | None, str | None]] = field(default_factory=list)
    heard: list[tuple[str, str, int]] = field(default_factory=list)  # by the user: operation, status, progress
    final: dict[str, Any] | None = None  # the row as it was when it was finished

    @property
    def active(self) -> bool:
        return self.status not in FINISHED

    def becomes(self, status: str) -> None:
        self.status = status
        self.history.append((status, self.attempts, self.worker, self.error_code))
        self.heard.append(("UPDATE", status, self.progress))
        if status != "processing":
            self.lease_until = None


@dataclass(frozen=True)
class Call:
    """A claim as its worker made it, to be made again."""

    token: UUID
    worker: str
    types: list[str]
    limit: int


class Queue(RuleBasedStateMachine):
    db_url: ClassVar[str]
    jobs = Bundle("jobs")
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.db = self.connect()
        self.target = f"model-{uuid4().hex[:12]}"
        self.users = [uuid4() for _ in range(3)]
        self.inserts = 0
        self.first_id = uuid4().int >> 32 << 32
        for worker in WORKERS[:2]:  # the third one has never reported
            self.db.execute(
                "insert into public.workers (id, target_worker, host, version, state, report_seconds)"
                " values (%s, %s, 'h', '1', 'ready', 1e6)",
                (self.name(worker), self.target),
            )
        for user in self.users:
            self.db.execute("insert into auth.users (id, email) values (%s, %s)", (user, f"{user}@model.example"))
        self.now = 0.0
        self.model: dict[UUID, Job] = {}
        self.wakes = self.cancels = 0

    def name(self, worker: str) -> str:
        return f"{self.target}-{worker}"

    def connect(self) -> Database:
        connection = psycopg.connect(self.db_url, autocommit=True, row_factory=dict_row)
        connection.execute("set synchronous_commit = off")
        return connection

    def ask(self, call: str, *arguments: Any) -> list[dict[str, Any]]:
        with self.db.transaction():
            self.db.execute("set local role service_role")
            return self.db.execute(f"select * from public.{call}".encode(), arguments).fetchall()

    def past(self, query: str, *arguments: Any) -> None:
        """Writes to rows behind the back of all triggers."""
        with self.db.transaction():
            self.db.execute("set local session_replication_role = replica")
            self.db.execute(query.encode(), arguments)

    # ---- users

    @rule(
        target=jobs,
        user=st.integers(0, 2),
        job_type=st.sampled_from(TYPES),
        priority=st.sampled_from([100, 100, 10]),
        batch_size=st.sampled_from([1, 3]),
        max_attempts=st.integers(1, 3),
        delayed=st.sampled_from([False, False, False, True]),
        key=st.sampled_from([None, None, None, "click-1", "click-2"]),
    )
    def insert(
        self, user: int, job_type: str, priority: int, batch_size: int, max_attempts: int, delayed: bool, key: str | None
    ) -> Any:
        owner = self.users[user]
        # ids in their order of birth, so that a tie between two jobs ends the same way when the case is run again
        self.inserts += 1
        job_id = UUID(int=self.first_id + self.inserts)
        delay = DELAY if delayed else 0
        query = """
            insert into public.jobs (id, user_id, job_type, target_worker, prompt, steps, priority, batch_size, max_attempts,
                                     run_at, idempotency_key)
            values (%s, %s, %s, %s, 'x', 25, %s, %s, %s, now() + make_interval(secs => %s), %s)
            on conflict (user_id, idempotency_key) do nothing returning id"""
        values = (
            job_id,
            owner,
            job_type,
            self.target,
            priority,
            batch_size,
            max_attempts,
            delay * 60,
            key and f"{self.target} {key}",
        )
        made = self.db.execute(query, values).fetchone()
        known = {row["key"] for row in self.rows("select idempotency_key as key from public.jobs where user_id = %s", owner)}
        if made is None:
            assert f"{self.target} {key}" in known
            return multiple()
        job = Job(
            id=made["id"],
            user=owner,
            job_type=job_type,
            priority=priority,
            fair_key=self.virtual_end(owner, priority, batch_size),
            batch_size=batch_size,
            max_attempts=max_attempts,
            run_at=self.now + delay,
        )
        job.history.append(("queued", 0, None, None))
        job.heard.append(("INSERT", "queued", 0))
        self.model[job.id] = job
        self.wakes += 1
        return job

    def virtual_end(self, owner: UUID, priority: int, cost: int) -> float:
        """At 25 steps and full size, a job costs its batch size."""
        peers = [job for job in self.model.values() if job.active and job.priority == priority]
        running = [job.fair_key for job in peers if job.status == "processing"]
        waiting = [job for job in peers if job.status == "queued" and job.run_at <= self.now]
        head = min(waiting, key=lambda job: (job.fair_key, job.id), default=None)
        now = max(running) if running else head.fair_key - head.batch_size if head else 0.0
        return max([now] + [job.fair_key for job in peers if job.user == owner]) + cost

    @rule(job=jobs)
    def cancel(self, job: Job) -> None:
        query = "update public.jobs set cancel_requested_at = now() where id = %s and status in ('queued', 'processing')"
        changed = self.db.execute(query, (job.id,)).rowcount
        assert changed == job.active
        if not job.active or job.cancel_requested:
            return
        job.cancel_requested = True
        if job.status == "queued":
            job.becomes("cancelled")
        else:
            job.heard.append(("UPDATE", job.status, job.progress))
            self.cancels += 1

    # ---- workers

    def held(self) -> list[Job]:
        return [job for job in self.model.values() if job.status == "processing"]

    @precondition(lambda self: bool(self.queued(TYPES)))
    @rule(
        target=calls,
        worker=st.sampled_from(WORKERS),
        types=st.sampled_from([TYPES, TYPES, TYPES[:1]]),
        limit=st.integers(1, 3),
        looked=st.booleans(),
    )
    def claim(self, worker: str, types: list[str], limit: int, looked: bool) -> Call:
        call = Call(uuid4(), self.name(worker), types, limit)
        self.make(call, looked=looked)
        return call

    @rule(call=calls, looked=st.booleans())
    def claim_again_after_a_lost_reply(self, call: Call, looked: bool) -> None:
        self.make(call, looked=looked)

    def make(self, call: Call, *, looked: bool) -> None:
        """`looked`: somebody has looked for dead leases in this very second, so that this claim does not."""
        with self.db.transaction():  # now() stands still in it
            self.db.execute(
                """insert into private.reaping values (%s, now() + make_interval(secs => %s))
                   on conflict (target_worker) do update set next_at = excluded.next_at""",
                (self.target, 1 if looked else -1),
            )
            (row,) = self.ask(
                "claim_jobs(%s, %s, %s, %s, %s, %s) as answer",
                *(call.worker, self.target, call.types, call.token, call.limit, int(LEASE * 60)),
            )
        answer = row["answer"]
        just_reaped = 0 if looked else self.reaped()
        held = [job for job in self.held() if job.token == call.token]
        expected = sorted(held, key=self.order) or self.due(call.types, call.worker)[: call.limit]
        assert [UUID(job["id"]) for job in answer["jobs"]] == [job.id for job in expected]
        for job in expected:
            if not held:
                job.attempts, job.claims, job.progress, job.error_code = job.attempts + 1, job.claims + 1, 0, None
                job.token, job.worker, job.last_finish = call.token, call.worker, None
                job.becomes("processing")
            job.lease_until = self.now + LEASE
        assert [(job["attempts"], job["claims"]) for job in answer["jobs"]] == [(job.attempts, job.claims) for job in expected]
        if not expected:
            leases = [max(0.0, cast("float", job.lease_until) - self.now) for job in self.held()]
            later = [self.free_at(job, call.worker) - self.now for job in self.queued(call.types)] + leases
            assert answer["more"] is False
            assert (answer["next_run_in_ms"] is None) == (not later)
            if later and not just_reaped:  # whose pause was another one when the claim was answered
                assert abs(answer["next_run_in_ms"] / 60_000 - min(later)) < 1

    def queued(self, types: list[str]) -> list[Job]:
        return sorted((job for job in self.model.values() if job.status == "queued" and job.job_type in types), key=self.order)

    def free_at(self, job: Job, worker: str) -> float:
        return max(job.run_at, job.avoid_until or 0 if worker in job.faulted_on else 0)

    def due(self, types: list[str], worker: str) -> list[Job]:
        return [job for job in self.queued(types) if self.free_at(job, worker) <= self.now]

    def order(self, job: Job) -> tuple[int, float, UUID]:
        return job.priority, job.fair_key, job.id

    @precondition(lambda self: bool(self.held()))
    @rule(pick=st.integers(0, 9), other=jobs)
    def heartbeat(self, pick: int, other: Job) -> None:
        job = self.held()[pick % len(self.held())]
        self.beat(cast("UUID", job.token), job, other)

    @rule(call=calls, job=jobs, other=jobs)
    def heartbeat_of_a_worker_that_lost_its_way(self, call: Call, job: Job, other: Job) -> None:
        self.beat(call.token, job, other)

    def beat(self, token: UUID, job: Job, other: Job) -> None:
        asked = list({each.id: each for each in (job, other)}.values())
        answer = self.ask("heartbeat_jobs(%s, %s, %s)", [each.id for each in asked], token, int(LEASE * 60))
        verdicts = {row["id"]: row["verdict"] for row in answer}
        for each in asked:
            if each.status != "processing" or each.token != token:
                assert verdicts[each.id] == "lost"
                continue
            assert verdicts[each.id] == ("cancel" if each.cancel_requested else "ok")
            each.lease_until = self.now + LEASE

    @precondition(lambda self: bool(self.held()))
    @rule(
        pick=st.integers(0, 9),
        outcome=st.sampled_from([*OUTCOMES, "crashed", "faulted"]),
        missing_image=st.sampled_from([False, False, False, True]),
        times=st.integers(1, 2),
    )
    def finish(self, pick: int, outcome: str, missing_image: bool, times: int) -> None:
        job = self.held()[pick % len(self.held())]
        for _ in range(times):
            self.end(job, cast("UUID", job.token), outcome, missing_image=missing_image)

    @precondition(lambda self: any(job.faulted_on for job in self.held()))
    @rule()
    def fault_on_another_worker_or_again(self) -> None:
        job = next(job for job in self.held() if job.faulted_on)
        self.end(job, cast("UUID", job.token), "faulted", missing_image=False)

    @rule(job=jobs, call=calls, outcome=st.sampled_from(OUTCOMES))
    def finish_by_a_worker_that_lost_its_way(self, job: Job, call: Call, outcome: str) -> None:
        self.end(job, call.token, outcome, missing_image=False)

    def end(self, job: Job, token: UUID, outcome: str, *, missing_image: bool) -> None:
        holds = job.status == "processing" and job.token == token
        count = job.batch_size - missing_image if outcome == "completed" else 0
        images = [
            {
                "index": index,
                "bucket": job.job_type,
                "path": f"{job.id}/{job.claims}-{index}",
                "thumbnail_path": f"{job.id}/t{index}",
            }
            | {"seed": 1, "width": 8, "height": 8, "mime_type": "image/png", "bytes": 1, "sha256": "0" * 64}
            for index in range(count)
        ]
        arguments = (job.id, token, outcome, Jsonb(images), Jsonb({"code": f"code_{outcome}", "message": "m"}))
        if holds and outcome == "completed" and missing_image:
            with pytest.raises(psycopg.Error, match="needs as many images"):
                self.ask("finish_job(%s, %s, %s, %s, %s) as verdict", *arguments)
            return
        ((verdict,),) = (row.values() for row in self.ask("finish_job(%s, %s, %s, %s, %s) as verdict", *arguments))
        if holds:
            assert verdict == "ok"
            self.finished(job, token, outcome)
        elif (token, outcome) == job.last_finish:
            assert verdict == "already"
        else:
            assert verdict in ("lost", "already")
            assert verdict == "lost" or token == job.token, "whoever does not hold the last lease is never told that all is well"

    def finished(self, job: Job, token: UUID, outcome: str) -> None:
        poison = outcome == "crashed" and job.crashes >= 1 and not job.cancel_requested
        worker = cast("str", job.worker)
        first_fault = worker not in job.faulted_on
        uncharged = (
            outcome == "released"
            or (outcome == "crashed" and not poison)
            or (outcome == "faulted" and first_fault and len(job.faulted_on) < job.max_attempts)
        )
        if outcome in FINISHED:
            status = outcome
        elif job.cancel_requested:
            status = "cancelled"
        elif poison or (not uncharged and job.attempts == job.max_attempts):
            status = "failed"
        else:
            status = "queued"
        charged_attempts = job.attempts
        if uncharged:
            job.attempts -= 1
        if outcome in ("faulted", "crashed"):
            job.faulted_on += [worker] if first_fault else []
            others = {self.name(other) for other in WORKERS[:2]} - set(job.faulted_on)
            if outcome == "faulted" or others:
                job.avoid_until = self.now + AVOIDED
        job.crashes = {"crashed": job.crashes + 1, "released": job.crashes}.get(outcome, 0)
        job.progress = {"completed": 100, "queued": 0}.get(status, job.progress)
        job.error_code = None if status in ("completed", "cancelled") else "poison_job" if poison else f"code_{outcome}"
        job.last_finish = (token, outcome)
        job.becomes(status)
        if status == "queued" and not uncharged:
            assert charged_attempts == job.attempts
            self.pause(job)
        elif status == "queued":
            self.wakes += 1

    @precondition(lambda self: bool(self.held()))
    @rule()
    def reap(self) -> None:
        ((reaped,),) = (row.values() for row in self.ask("reap_jobs(%s) as reaped", self.target))
        assert reaped == self.reaped()

    def reaped(self) -> int:
        dead = [job for job in self.held() if cast("float", job.lease_until) < self.now]
        for job in dead:
            job.error_code = "lease_expired"
            job.becomes("cancelled" if job.cancel_requested else "failed" if job.attempts == job.max_attempts else "queued")
            self.pause(job)
        return len(dead)

    def pause(self, job: Job) -> None:
        """Before the next attempt: at random up to 5, 10, 20… seconds. That is checked, and then made the model's."""
        if job.status == "queued":
            (row,) = self.rows("select extract(epoch from run_at - now())::float as pause from public.jobs where id = %s", job.id)
            assert -60 < row["pause"] <= min(300, 5 * 2 ** (job.attempts - 1))
            self.past("update public.jobs set run_at = now() + make_interval(secs => %s) where id = %s", PAUSE * 60, job.id)
            self.past(
                "update private.leases l set run_at = j.run_at from public.jobs j where j.id = l.job_id and j.id = %s", job.id
            )
            job.run_at = self.now + PAUSE

    # ---- time

    @precondition(lambda self: any(job.active for job in self.model.values()))
    @rule(minutes=st.sampled_from([1, 6, 6, 11, 31]))
    def advance(self, minutes: int) -> None:
        self.past(
            """update public.jobs set created_at = created_at - d, started_at = started_at - d, run_at = run_at - d,
                                      cancel_requested_at = cancel_requested_at - d
                 from make_interval(mins => %s) d where target_worker = %s and completed_at is null""",
            *(minutes, self.target),
        )
        self.past(
            """update private.leases set run_at = run_at - d, expires_at = expires_at - d, avoid_until = avoid_until - d
                 from make_interval(mins => %s) d where target_worker = %s and state <> 'ended'""",
            *(minutes, self.target),
        )
        self.now += minutes

    # ---- what must hold after every step

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return self.db.execute(query.encode(), arguments).fetchall()

    @invariant()
    def the_rows_are_as_the_model_says(self) -> None:
        rows = self.rows(
            """select j.*, extract(epoch from j.run_at - now())::float / 60 as run_in
                 from public.jobs j where target_worker = %s""",
            self.target,
        )
        leases = {
            row["job_id"]: row
            for row in self.rows(
                """select l.*, extract(epoch from expires_at - now())::float / 60 as lease_left
                     from private.leases l where target_worker = %s""",
                self.target,
            )
        }
        assert set(leases) == set(self.model)
        assert {row["id"] for row in rows} == set(self.model)
        for row in rows:
            job = self.model[row["id"]]
            lease = leases[row["id"]]
            names = ["status", "attempts", "progress", "error_code"]
            assert {name: row[name] for name in names} == {name: getattr(job, name) for name in names}
            names = ["claims", "crashes", "faulted_on", "fair_key", "token", "worker"]
            assert {name: lease[name] for name in names} == {name: getattr(job, name) for name in names}
            assert {name: lease[name] for name in COPIED} == {name: row[name] for name in COPIED}
            assert lease["state"] == {"queued": "waiting", "processing": "held"}.get(row["status"], "ended")
            assert (row["cancel_requested_at"] is not None) == job.cancel_requested
            assert (row["status"] == "processing") == (lease["expires_at"] is not None), "a lease is held while processing"
            assert 0 <= row["attempts"] <= min(lease["claims"], row["max_attempts"])
            if job.lease_until is not None:
                assert abs(lease["lease_left"] - (job.lease_until - self.now)) < 1
            if job.status == "queued":
                assert abs(row["run_in"] - (job.run_at - self.now)) < 1
            if not job.active:
                fixed = {name: value for name, value in row.items() if name != "run_in"}
                job.final = job.final or fixed
                assert fixed == job.final, "a finished row never changes"

    @invariant()
    def only_completed_jobs_have_images_and_have_them_all(self) -> None:
        query = """select job_id, count(*) as images from public.job_images
                    where job_id in (select id from public.jobs where target_worker = %s) group by 1"""
        images = {row["job_id"]: row["images"] for row in self.rows(query, self.target)}
        assert images == {job.id: job.batch_size for job in self.model.values() if job.status == "completed"}

    @invariant()
    def the_history_has_every_change_of_state_once(self) -> None:
        query = """select job_id, array_agg((status, attempt, worker, error_code)::text order by e.id) as history
                     from public.job_events e where job_id in (select id from public.jobs where target_worker = %s) group by 1"""
        histories = {row["job_id"]: row["history"] for row in self.rows(query, self.target)}
        assert histories == {
            job.id: ["(" + ",".join("" if part is None else str(part) for part in event) + ")" for event in job.history]
            for job in self.model.values()
        }

    def teardown(self) -> None:
        try:
            self.every_change_was_broadcast_once()
        finally:
            self.db.execute("delete from public.jobs where target_worker = %s", (self.target,))
            self.db.execute("delete from public.workers where target_worker = %s", (self.target,))
            self.db.close()

    def every_change_was_broadcast_once(self) -> None:
        topics = [f"user:{user}" for user in self.users] + [f"worker:{self.target}"]
        sent = self.rows("select topic, event, payload from realtime.messages where topic = any (%s) order by inserted_at", topics)
        heard: dict[UUID, list[tuple[str, str, int]]] = {}
        for message in sent:
            if message["topic"].startswith("user:"):
                record = message["payload"]["record"]
                heard.setdefault(UUID(record["id"]), []).append((message["event"], record["status"], record["progress"]))
        assert heard == {job.id: job.heard for job in self.model.values()}
        to_workers = [message["event"] for message in sent if message["topic"].startswith("worker:")]
        assert (to_workers.count("wake"), to_workers.count("cancel")) == (self.wakes, self.cancels)


@pytest.fixture
def machine(supabase: EmbeddedSupabase, db: Database) -> Iterator[type[Queue]]:
    Queue.db_url = supabase.db_url
    yield Queue
    db.execute("delete from auth.users where email like '%%@model.example'")


@pytest.mark.timeout(0 if EXAMPLES else 900)
def test_the_queue_does_what_the_model_says(machine: type[Queue]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)


MUTATIONS = {
    "a finish without its fence": ("finish_job", "v_lease.token is distinct from p_token or v_lease.token is null", "false"),
    "a heartbeat without its fence": ("heartbeat_jobs", "and l.token = p_token", ""),
    "a reaper that takes living leases": ("reap_jobs", "and l.expires_at < now()", ""),
    "a delayed job claimed early": (
        "claim_jobs",
        "greatest(l.run_at, case when p_worker = any (l.faulted_on) then l.avoid_until end) <= now()\n"
        "           and j.status = 'queued' and j.run_at <= now()",
        "j.status = 'queued'",
    ),
    "a crash that is charged": ("finish_job", "(p_outcome = 'crashed' and not v_poison)", "false"),
    "a fault that is never charged": (
        "finish_job",
        "v_lease.worker <> all (v_lease.faulted_on) and cardinality(v_lease.faulted_on) < v_job.max_attempts",
        "true",
    ),
    "a fault that its worker claims again": (
        "claim_jobs",
        "case when p_worker = any (l.faulted_on) then l.avoid_until end) <= now()",
        "l.run_at) <= now()",
    ),
    "a repeated claim that takes more": ("claim_jobs", "if v_ids is null then\n    for", "if true then\n    for"),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_model_notices(machine: type[Queue], db: Database, mutation: str) -> None:
    function, true, false = MUTATIONS[mutation]
    (row,) = db.execute("select pg_get_functiondef(%s::regproc) as source", (f"public.{function}",)).fetchall()
    assert row["source"].count(true) == 1
    db.execute(row["source"].replace(true, false).encode())
    try:
        with pytest.raises((AssertionError, psycopg.Error)):
            run_state_machine_as_test(machine, settings=settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False))
    finally:
        db.execute(row["source"].encode())
