"""Guards against plans that read the whole table: each call reads a bounded number of pages, however many finished jobs are kept.

Measured and not read from a plan: buffers by EXPLAIN of the whole call, with all that happens inside it, and rows of sequential
scans by pg_stat_xact_all_tables; each call in a transaction that is rolled back. With statistics, without, and with stale ones;
with custom and generic plans; and with plans that were made, and kept, when the table was empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database
from tests.integration.test_queue_functions import image

TARGET = "planned"
USERS = 500
WAITING = 100  # jobs, and as many are processing; all others are finished
TOKEN = UUID(int=7)  # of every job that is processing
BIG_TABLES = ["jobs", "leases", "job_images", "job_events", "objects", "users"]

STAGES = [
    (0, "no statistics"),
    (20_000, "no statistics"),
    (20_000, "statistics"),
    (100_000, "stale statistics"),
    (100_000, "statistics"),
]


class Filled:
    """The tables at a stage; rows are only added, so that the stages come in their order."""

    def __init__(self, admin: Database, kept: Database) -> None:
        self.admin = admin
        self.kept = kept  # its plans were made when the tables were empty
        self.rows = 0

    def grow_to(self, rows: int) -> None:
        if rows <= self.rows:
            return
        self.admin.execute("set session_replication_role = replica")
        self.admin.execute(
            """
            insert into public.jobs (id, user_id, job_type, target_worker, prompt, status, error_code, completed_at,
                                     created_at, idempotency_key, attempts)
            select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
                   ('00000000-0000-4000-9000-' || lpad(to_hex(n %% %(users)s), 12, '0'))::uuid,
                   'sdxl_image_fast', %(target)s, 'a red circle', s.status, case s.status when 'failed' then 'x' end,
                   case when s.status in ('completed', 'failed') then now() - make_interval(mins => n) end,
                   now() - make_interval(secs => n), n::text, 1
              from generate_series(%(from)s::int, %(to)s::int) n,
                   lateral (select case when n <= %(waiting)s then 'queued'
                                        when n <= 2 * %(waiting)s then 'processing'
                                        when n %% 10 = 0 then 'failed' else 'completed' end as status) s
            """,
            {"users": USERS, "target": TARGET, "waiting": WAITING, "from": self.rows + 1, "to": rows},
        )
        self.admin.execute(
            """insert into private.leases (job_id, state, user_id, target_worker, job_type, priority, run_at, cost, fair_key,
                                           token, worker, expires_at, claims, faulted_on, avoid_until)
               select id, case status when 'queued' then 'waiting' when 'processing' then 'held' else 'ended' end,
                      user_id, target_worker, job_type, priority, run_at, 1, idempotency_key::int / 100.0,
                      case when status <> 'queued' then %(token)s end, 'w',
                      case status when 'processing' then now() + interval '1 h' end, 1,
                      array['faulty'], now() + interval '1 h'
                 from public.jobs where idempotency_key::int between %(from)s and %(to)s""",
            {"token": TOKEN, "from": self.rows + 1, "to": rows},
        )
        parameters = {"from": self.rows + 1, "to": rows}
        path = "user_id || '/' || id || '/1-0'"
        some = "from public.jobs where idempotency_key::int between %(from)s and %(to)s and idempotency_key::int %% 10 = 1"
        self.admin.execute(
            f"""insert into public.job_images
                       (job_id, index, bucket, path, thumbnail_path, seed, width, height, mime_type, bytes, sha256)
                select id, 0, 'sdxl_image_fast', {path} || '.png', {path} || '.webp', 1, 8, 8, 'image/png', 1, repeat('0', 64)
                {some} and status = 'completed'""".encode(),
            parameters,
        )
        self.admin.execute(
            f"insert into storage.objects (bucket_id, name) select 'sdxl_image_fast', {path} || '.png' {some}".encode(), parameters
        )
        self.admin.execute(
            f"insert into public.job_events (job_id, status, attempt) select id, status, attempts {some}".encode(), parameters
        )
        self.admin.execute("set session_replication_role = origin")
        self.rows = rows

    def analyse(self) -> None:
        for table in ("public.jobs", "private.leases", "public.job_images", "public.job_events", "storage.objects", "auth.users"):
            self.admin.execute(b"vacuum (analyze) " + table.encode())


@pytest.fixture(scope="module")
def filled(supabase: EmbeddedSupabase) -> Iterator[Filled]:
    with ExitStack() as stack:
        admin = stack.enter_context(psycopg.connect(supabase.db_url, autocommit=True, row_factory=dict_row))
        kept = stack.enter_context(psycopg.connect(supabase.db_url, autocommit=True, row_factory=dict_row))

        def empty() -> None:
            admin.execute("truncate public.jobs cascade")
            admin.execute("set storage.allow_delete_query = 'true'")
            admin.execute("delete from storage.objects where bucket_id in ('sdxl_image_fast', 'sdxl_image_high')")
            admin.execute("delete from auth.users where email like '%%@plans.example'")

        empty()
        stack.callback(empty)
        for table in (
            "public.jobs",
            "private.leases",
            "public.job_images",
            "public.job_events",
            "storage.objects",
        ):  # no statistics but those asked for
            admin.execute(f"alter table {table} set (autovacuum_enabled = off)".encode())
            stack.callback(admin.execute, f"alter table {table} reset (autovacuum_enabled)".encode())
        admin.execute(
            """insert into auth.users (id, email)
               select ('00000000-0000-4000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, n || '@plans.example'
                 from generate_series(0, %s) n""",
            (USERS - 1,),
        )
        yield Filled(admin, kept)


@pytest.fixture(scope="module", params=STAGES, ids=lambda stage: f"{stage[0]} rows, {stage[1]}")
def stage(request: pytest.FixtureRequest, filled: Filled) -> Filled:
    rows, statistics = request.param
    filled.grow_to(rows)
    if statistics == "statistics":
        filled.analyse()
    return filled


@dataclass(frozen=True)
class Read:
    buffers: int
    by_sequential_scan: dict[str, int]  # rows, by table


def rows_by_sequential_scan(connection: Database) -> dict[str, int]:
    query = "select relname, seq_tup_read from pg_stat_xact_all_tables where relname = any (%s)"
    return {scan["relname"]: scan["seq_tup_read"] for scan in connection.execute(query, (BIG_TABLES,)).fetchall()}


def read(connection: Database, query: str, *arguments: Any, role: str = "service_role") -> Read:
    """What one statement reads, inside functions and triggers too; its effects are rolled back."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"set local role {role}".encode())
        claims = json.dumps({"sub": str(ITS_OWNER), "role": role})
        connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
        before = rows_by_sequential_scan(connection)  # of this session, since it last reported
        explained = connection.execute(f"explain (analyze, buffers, format json) {query}".encode(), arguments).fetchone()
        after = rows_by_sequential_scan(connection)
    assert explained
    plan = explained["QUERY PLAN"][0]["Plan"]
    scanned = {table: rows - before.get(table, 0) for table, rows in after.items() if rows > before.get(table, 0)}
    return Read(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], scanned)


USER = UUID("00000000-0000-4000-9000-00000000001f")
WAITING_JOB = UUID("00000000-0000-4000-8000-000000000001")
LAST_WAITING_JOB = UUID(f"00000000-0000-4000-8000-{WAITING:012x}")
ITS_OWNER = UUID(f"00000000-0000-4000-9000-{WAITING:012x}")
RUNNING_JOB = UUID(f"00000000-0000-4000-8000-{WAITING + 1:012x}")
INSERT = f"insert into public.jobs (user_id, job_type, prompt, target_worker) values ('{USER}', 'sdxl_image_fast', 'x', '{TARGET}')"
OF_USERS = {"jobs ahead"}

#        what                     query, arguments, at most so many buffers
CALLS = {
    "claim": ("select public.claim_jobs('w', %s, array['sdxl_image_fast'], %s)", (TARGET, uuid4()), 150),
    "claim of ten": ("select public.claim_jobs('w', %s, array['sdxl_image_fast'], %s, 10)", (TARGET, uuid4()), 900),
    "claim with nothing of its type": ("select public.claim_jobs('w', %s, array['none'], %s)", (TARGET, uuid4()), 5 * WAITING),
    "claim that passes over what its worker faulted": (
        "select public.claim_jobs('faulty', %s, array['sdxl_image_fast'], %s)",
        (TARGET, uuid4()),
        5 * WAITING,
    ),
    "heartbeat": ("select * from public.heartbeat_jobs(%s, %s)", ([RUNNING_JOB], TOKEN), 30),
    "heartbeat of a hundred": (
        "select * from public.heartbeat_jobs(%s, %s)",
        ([UUID(int=RUNNING_JOB.int + i) for i in range(WAITING)], TOKEN),
        40 * WAITING,
    ),
    "finish": (
        "select public.finish_job(%s, %s, 'completed', %s)",
        (RUNNING_JOB, TOKEN, Jsonb([image() | {"path": "p", "thumbnail_path": "t"}])),
        150,
    ),
    "reap with nothing to do": ("select public.reap_jobs(%s)", (TARGET,), 10 * WAITING),
    "insert": (INSERT, (), 150),
    "cancel": ("update public.jobs set cancel_requested_at = now() where id = %s", (WAITING_JOB,), 50),
    "sweep of a hundred objects": ("select * from public.sweep_orphans(100, 0)", (), 1500),
    "gallery": ("select * from public.jobs where user_id = %s order by created_at desc limit 20", (USER,), 100),
    "jobs ahead": ("select public.jobs_ahead(%s)", (LAST_WAITING_JOB,), 8 * WAITING),
    "fleet": ("select * from public.fleet", (), 10 * WAITING),
    "queue health": ("select * from public.queue_health", (), 50 * WAITING),
    "images of one job": ("select * from public.job_images where job_id = %s order by index", (WAITING_JOB,), 30),
    "history of one job": ("select * from public.job_events where job_id = %s order by id", (WAITING_JOB,), 30),
}


@pytest.mark.parametrize("plans", ["as Postgres likes", "generic", "made when the table was empty"])
@pytest.mark.parametrize("what", CALLS)
def test_reads_little_however_much_there_is(supabase: EmbeddedSupabase, stage: Filled, what: str, plans: str) -> None:
    query, arguments, most_buffers = CALLS[what]
    stage.admin.execute("update private.sweep set next_at = now() - interval '1 s'")
    with psycopg.connect(supabase.db_url, autocommit=True, row_factory=dict_row) as fresh:
        connection = stage.kept if plans == "made when the table was empty" else fresh
        if plans != "as Postgres likes":
            connection.execute("set plan_cache_mode = force_generic_plan")
        connection.execute("set statement_timeout = '8 s'")
        for _ in range(2):  # the first one also reads the catalogue
            seen = read(connection, query, *arguments, role="authenticated" if what in OF_USERS else "service_role")
    assert seen.by_sequential_scan == {}
    assert seen.buffers <= most_buffers


@pytest.mark.parametrize("stage", STAGES[-1:], indirect=True)
def test_the_guard_notices_a_missing_index(stage: Filled) -> None:
    with stage.admin.transaction(force_rollback=True):
        stage.admin.execute("drop index private.leases_queue_idx")
        query, arguments, most_buffers = CALLS["claim"]
        seen = read(stage.admin, query, *arguments)
    assert seen.by_sequential_scan or seen.buffers > most_buffers
