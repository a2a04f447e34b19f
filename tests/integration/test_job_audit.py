"""What an operator reads in the Supabase dashboard: the audit of each job, the saved questions, a comment on everything."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from supabase import Client, ClientOptions, create_client

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from tests.integration.conftest import Database, sign_up
from tests.processes import scratch_supabase

TARGET = "audited"
SNIPPETS = sorted((ROOT / "supabase" / "snippets").glob("*.sql"))
CHANGES = {"make-an-operator"}  # which answer nothing
PROMPT = "a quagga among okapis"


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedSupabase]:
    with scratch_supabase() as running:
        yield running


class Scene:
    """A day at work: jobs in every state, of one user, with workers alive and dead. Times are set back by hand."""

    def __init__(self, supabase: EmbeddedSupabase, db: Database) -> None:
        self.db, self.user = db, sign_up(supabase)
        self.service = create_client(supabase.url, supabase.secret_key, ClientOptions(auto_refresh_token=False))
        self.call("report_worker", p_worker="w", p_state="ready", p_facts={"target_worker": TARGET, "host": "h", "version": "1"})
        self.call("report_worker", p_worker="dead", p_state="ready", p_facts={"target_worker": TARGET, "host": "h", "version": "1"})
        db.execute("update public.workers set last_seen_at = now() - interval '1 hour' where id = 'dead'")
        db.execute("insert into public.worker_starts (target_worker, state, ended_at) values (%s, 'ended', now())", (TARGET,))
        self.completed, self.failed, self.retried = self.insert(), self.insert(), self.insert()
        for _ in range(3):
            self.claim()
        images = [image(self.user.id, self.completed)]
        metrics = {"generation_time": 1.5, "trace_id": "0" * 31 + "1"}
        warnings = [{"code": "low_memory", "message": "x"}]
        self.finish(self.completed, "completed", p_images=images, p_metrics=metrics, p_warnings=warnings)
        self.finish(self.failed, "failed", p_error={"code": "blank_image", "message": "x"})
        self.finish(self.retried, "retry", p_error={"code": "upload_failed", "message": "x"})
        self.waiting = self.insert(prompt=PROMPT)
        path = f"{self.user.id}/cat.png"
        self.user.client.storage.from_("reference_images").upload(path, b"a picture", {"content-type": "image/png"})
        # as if it had taken its time: two seconds in the queue, three with the worker
        db.execute(
            """update public.job_events
                  set created_at = now() - case status when 'queued' then interval '10 s' when 'processing' then interval '8 s'
                                                       else interval '5 s' end
                where job_id = %s""",
            (self.completed,),
        )

    def insert(self, **columns: Any) -> str:
        return str(self.user.insert(target_worker=TARGET, **columns)["id"])

    def call(self, function: str, **arguments: Any) -> Any:
        return self.service.rpc(function, arguments).execute().data

    def claim(self) -> None:
        arguments = {"p_worker": "w", "p_target": TARGET, "p_job_types": ["sdxl_image_fast"], "p_token": str(uuid4())}
        assert self.call("claim_jobs", **arguments)["jobs"]

    def finish(self, job_id: str, outcome: str, **details: Any) -> None:
        row = self.db.execute("select token from private.leases where job_id = %s", (job_id,)).fetchone()
        assert row
        assert self.call("finish_job", p_id=job_id, p_token=str(row["token"]), p_outcome=outcome, **details) == "ok"

    def audit(self, job_id: str, client: Client | None = None) -> dict[str, Any]:
        rows: Any = (client or self.user.client).table("job_audit").select("*").eq("job_id", job_id).execute().data
        return dict(rows[0])


def image(user_id: str, job_id: str) -> dict[str, Any]:
    path = f"{user_id}/{job_id}/1-0"
    return {
        "index": 0, "bucket": "sdxl_image_fast", "path": f"{path}.png", "thumbnail_path": f"{path}.thumb.webp", "seed": 1,
        "width": 8, "height": 8, "mime_type": "image/png", "bytes": 9, "sha256": "0" * 64,
    }  # fmt: skip


@pytest.fixture(scope="module")
def database(own: EmbeddedSupabase) -> Iterator[Database]:
    with psycopg.connect(own.db_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture(scope="module")
def scene(own: EmbeddedSupabase, database: Database) -> Scene:
    return Scene(own, database)


def test_the_audit_tells_what_happened_to_a_job(scene: Scene) -> None:
    seen = scene.audit(scene.completed)
    names = ("user_id", "status", "worker", "attempts", "claims", "error_code", "warnings", "images")
    assert {name: seen[name] for name in names} == {
        "user_id": scene.user.id,
        "status": "completed",
        "worker": "w",
        "attempts": 1,
        "claims": 1,
        "error_code": None,
        "warnings": ["low_memory"],
        "images": 1,
    }
    assert (seen["wait_seconds"], seen["run_seconds"], seen["gpu_seconds"], seen["trace_id"]) == (2.0, 3.0, 1.5, "0" * 31 + "1")
    first, second, third = seen["history"].splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC queued", first)
    assert (second, third) == ("+2.00 s processing by w", "+3.00 s completed")


def test_the_history_names_what_went_wrong(scene: Scene) -> None:
    assert scene.audit(scene.failed)["history"].splitlines()[-1].endswith(" s failed: blank_image")
    retried = scene.audit(scene.retried)
    assert retried["history"].splitlines()[-1].endswith(" s queued: upload_failed")
    assert (retried["status"], retried["error_code"], retried["ended_at"]) == ("queued", "upload_failed", None)


def test_a_job_that_waits_has_waited_until_now(scene: Scene) -> None:
    scene.db.execute("update public.job_events set created_at = now() - interval '7 s' where job_id = %s", (scene.waiting,))
    seen = scene.audit(scene.waiting)
    assert 7 <= seen["wait_seconds"] < 60
    assert (seen["run_seconds"], seen["worker"], seen["first_claimed_at"]) == (None, None, None)


def test_one_sees_ones_own_jobs_and_the_worker_all(scene: Scene, own: EmbeddedSupabase) -> None:
    other = sign_up(own)
    assert other.client.table("job_audit").select("*").execute().data == []
    assert len(scene.user.client.table("job_audit").select("*").execute().data) == 4
    assert len(scene.service.table("job_audit").select("*").execute().data) == 4


def test_the_audit_has_no_words_and_no_paths(scene: Scene) -> None:
    told = str(scene.service.table("job_audit").select("*").execute().data)
    assert [word for word in ("quagga", "okapi", "/1-0", ".png") if word in told] == []


def test_the_audit_of_one_job_reads_no_other(scene: Scene) -> None:
    with scene.db.transaction():
        scene.db.execute("set local enable_seqscan = off")  # a table of four rows is read whole otherwise
        query = "explain (format json) select * from public.job_audit where job_id = %s"
        plan = str(scene.db.execute(query, (scene.completed,)).fetchone())
    assert "Seq Scan" not in plan
    assert {"jobs_pkey", "job_events_job_idx", "job_images_pkey"} == set(re.findall(r"'Index Name': '(\w+)'", plan))


def first_line(path: Path) -> str:
    return path.read_text().splitlines()[0]


def run(db: Database, path: Path, job_id: str) -> list[dict[str, Any]]:
    text = path.read_text().replace("00000000-0000-0000-0000-000000000000", job_id)
    return db.execute(text.encode()).fetchall()


@pytest.mark.parametrize("path", [path for path in SNIPPETS if path.stem not in CHANGES], ids=lambda path: path.stem)
def test_a_saved_question_has_an_answer(scene: Scene, path: Path) -> None:
    assert re.match(r"-- [A-Z].*[?:]", first_line(path)), "it begins with the question"
    rows = run(scene.db, path, scene.completed)
    assert rows, "there is something to answer"
    assert PROMPT not in str(rows)


def answers(scene: Scene, name: str) -> list[dict[str, Any]]:
    return run(scene.db, ROOT / "supabase" / "snippets" / f"{name}.sql", scene.completed)


def test_the_answers_are_right(scene: Scene) -> None:
    assert [row["history"] for row in answers(scene, "what-happened-to-a-job")] == [scene.audit(scene.completed)["history"]]
    assert [(row["user_id"], row["waiting"]) for row in answers(scene, "who-waits-longest")] == [(as_uuid(scene), 2)]
    failures = {row["error_code"]: (row["failed"], row["tried_again"]) for row in answers(scene, "failures-today-by-code")}
    assert failures == {"blank_image": (1, 0), "upload_failed": (0, 1)}
    assert answers(scene, "slowest-jobs")[0]["beside_the_gpu_seconds"] == 1.5
    [cost] = answers(scene, "cost-by-user")
    assert (cost["jobs"], cost["completed"], cost["images"], float(cost["gpu_seconds"])) == (4, 1, 1, 1.5)
    [stored] = answers(scene, "storage-by-user")
    assert (stored["user_id"], stored["bucket"], stored["objects"]) == (scene.user.id, "reference_images", 1)
    assert [(row["id"], row["holds"]) for row in answers(scene, "dead-workers")] == [("dead", 0)]
    assert [row["jobs"] for row in answers(scene, "jobs-with-warnings")] == [1]
    assert {row["job_type"]: row["jobs_in_the_last_day"] for row in answers(scene, "negative-presets")} == {
        "sdxl_image_fast": 4,
        "sdxl_image_high": 0,
    }
    assert sum(row["asked"] for row in answers(scene, "jobs-by-hour")) == 4


def as_uuid(scene: Scene) -> Any:
    from uuid import UUID

    return UUID(scene.user.id)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("select 1", "Ready workers do not claim"),
        ("update public.workers set last_seen_at = now() - interval '1 hour'", "No worker of this target lives"),
        (
            "update public.workers set last_seen_at = now() - interval '1 hour';"
            " insert into public.worker_starts (target_worker, error) select target_worker, 'HTTP 500' from public.workers limit 1",
            "RunPod starts no pod: HTTP 500",
        ),
        ("update public.workers set state = 'draining' where id = 'w'", "Every worker is draining"),
        ("update public.workers set state = 'starting' where id = 'w'", "A worker is loading its model"),
        (
            "update private.leases set state = 'held', expires_at = now() + interval '1 h', worker = 'w',"
            " token = gen_random_uuid() where job_id = %(waiting)s;"
            " update public.jobs set status = 'processing' where id = %(waiting)s;"
            " update public.jobs set run_at = now() where id = %(retried)s",
            "Every worker is busy",
        ),
        ("update public.jobs set run_at = now() + interval '1 h' where id in (%(waiting)s, %(retried)s)", "put off"),
    ],
)
def test_why_the_queue_stands(scene: Scene, own: EmbeddedSupabase, change: str, why: str) -> None:
    with psycopg.connect(own.db_url, row_factory=dict_row) as connection:
        for statement in change.split(";"):
            values = {"waiting": scene.waiting, "retried": scene.retried} if "%(" in statement else None
            connection.execute(statement.encode(), values)
        [row] = run(connection, ROOT / "supabase" / "snippets" / "why-does-the-queue-stand.sql", scene.completed)
        connection.rollback()
    assert why in row["why"]


UNCOMMENTED = """
  select format('%s %I.%I', case c.relkind when 'v' then 'view' else 'table' end, n.nspname, c.relname) as thing
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v', 'm') and obj_description(c.oid, 'pg_class') is null
  union all
  select format('column %I.%I.%I', n.nspname, c.relname, a.attname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
   where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v', 'm') and a.attnum > 0 and not a.attisdropped
     and col_description(c.oid, a.attnum) is null
  union all
  select format('function %s', p.oid::regprocedure)
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
   where n.nspname in ('public', 'private') and obj_description(p.oid, 'pg_proc') is null
     and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
   order by 1
"""


def test_everything_of_ours_has_a_comment(database: Database) -> None:
    assert [row["thing"] for row in database.execute(UNCOMMENTED).fetchall()] == []


def test_a_comment_that_is_missing_is_missed(database: Database) -> None:
    before = {row["thing"] for row in database.execute(UNCOMMENTED).fetchall()}
    with database.transaction(force_rollback=True):
        for statement in (
            "comment on column public.jobs.seed is null",
            "comment on view public.job_audit is null",
            "comment on function private.backoff(integer, real, real) is null",
        ):
            database.execute(statement.encode())
        found = {row["thing"] for row in database.execute(UNCOMMENTED).fetchall()} - before
    assert found == {"column public.jobs.seed", "function private.backoff(integer,real,real)", "view public.job_audit"}
