"""What browsers and workers ask for works on every kind of project, through the roles and limits of its REST server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from ourvidz_sdxl.local import ROOT
from tests.platform.database import Database, Requests

REFUSED = psycopg.errors.InsufficientPrivilege
TYPES = ["sdxl_image_fast", "sdxl_image_high"]


class Scene:
    """One user and one worker, alone with a target of their own."""

    def __init__(self, database: Database, requests: Requests) -> None:
        self.database, self.requests = database, requests
        self.user = database.sign_up()
        self.target = f"t-{uuid4().hex[:8]}"
        self.token = str(uuid4())

    def as_user(
        self, statement: str, *values: Any, user: str | None = None, settings: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        return self.requests.ask("authenticated", statement, values, user=user or self.user, settings=settings)

    def as_worker(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        return self.requests.ask("service_role", statement, values)

    def insert(self, **columns: Any) -> str:
        row = {"job_type": TYPES[0], "prompt": "a cat", "target_worker": self.target} | columns
        statement = f"insert into public.jobs ({', '.join(row)}) values ({', '.join(['%s'] * len(row))}) returning id::text"
        return str(self.as_user(statement, *row.values())[0]["id"])

    def claim(self) -> list[dict[str, Any]]:
        [row] = self.as_worker("select public.claim_jobs('w', %s, %s, %s) as claim", self.target, TYPES, self.token)
        return list(row["claim"]["jobs"])

    def finish(
        self, job_id: str, outcome: str, images: list[dict[str, Any]] | None = None, error: dict[str, str] | None = None
    ) -> str:
        statement = "select public.finish_job(%s, %s, %s, %s, %s) as answer"
        [row] = self.as_worker(statement, job_id, self.token, outcome, json.dumps(images or []), error and json.dumps(error))
        return str(row["answer"])

    def complete(self, job_id: str) -> str:
        """The path of the picture."""
        path = f"{self.user}/{job_id}/1-0.png"
        image = {
            "index": 0,
            "bucket": TYPES[0],
            "path": path,
            "thumbnail_path": f"{self.user}/{job_id}/1-0.thumb.webp",
            "seed": 7,
            "width": 128,
            "height": 128,
            "mime_type": "image/png",
            "bytes": 9,
            "sha256": "0" * 64,
        }
        self.upload(TYPES[0], path)
        assert self.finish(job_id, "completed", [image]) == "ok"
        return path

    def upload(self, bucket: str, path: str) -> None:
        """As the Storage server does with the service key."""
        self.as_worker("insert into storage.objects (bucket_id, name) values (%s, %s)", bucket, path)

    def to_be_removed(self) -> list[str]:
        """What a worker is told to remove from Storage, from the first object on."""
        self.owner("update private.sweep set bucket = '', path = '', next_at = now() - interval '1 hour' where only_row")
        return [row["path"] for row in self.as_worker("select * from public.sweep_orphans(100000)")]

    def report(self, state: str = "ready", **facts: Any) -> None:
        facts = {"target_worker": self.target, "host": "h", "version": "1"} | facts
        self.as_worker("select public.report_worker(%s, %s, %s)", f"worker of {self.target}", state, json.dumps(facts))

    def status(self, job_id: str) -> str:
        return str(self.as_user("select status from public.jobs where id = %s", job_id)[0]["status"])

    def owner(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with self.database.connected("postgres") as postgres:
            cursor = postgres.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def scene(database: Database, requests: Requests) -> Scene:
    return Scene(database, requests)


class TestJobs:
    def test_a_job_goes_from_the_browser_to_the_worker_and_back(self, scene: Scene) -> None:
        job_id = scene.insert()
        [job] = scene.claim()
        assert (job["id"], scene.status(job_id)) == (job_id, "processing")
        [beat] = scene.as_worker("select * from public.heartbeat_jobs(%s::uuid[], %s)", [job_id], scene.token)
        assert beat["verdict"] == "ok"
        scene.complete(job_id)
        assert scene.status(job_id) == "completed"
        assert len(scene.as_user("select path from public.job_images where job_id = %s", job_id)) == 1
        history = scene.as_user("select status from public.job_events where job_id = %s order by id", job_id)
        assert [event["status"] for event in history] == ["queued", "processing", "completed"]
        [audit] = scene.as_user("select status, claims from public.job_audit where job_id = %s", job_id)
        assert audit == {"status": "completed", "claims": 1}

    @pytest.mark.parametrize(
        ("outcome", "status"),
        [
            ("retry", "queued"),
            ("released", "queued"),
            ("crashed", "queued"),
            ("faulted", "queued"),
            ("failed", "failed"),
            ("cancelled", "cancelled"),
        ],
    )
    def test_a_worker_gives_it_back_or_ends_it(self, scene: Scene, outcome: str, status: str) -> None:
        job_id = scene.insert()
        scene.claim()
        assert scene.finish(job_id, outcome, error={"code": "planted", "message": "Planted."}) == "ok"
        assert scene.status(job_id) == status

    def test_its_user_cancels_it(self, scene: Scene) -> None:
        waiting = scene.insert()
        cancel = "update public.jobs set cancel_requested_at = now() where id = %s"
        scene.as_user(cancel, waiting)
        assert scene.status(waiting) == "cancelled"
        running = scene.insert()
        scene.claim()
        scene.as_user(cancel, running)
        [beat] = scene.as_worker("select * from public.heartbeat_jobs(%s::uuid[], %s)", [running], scene.token)
        assert beat["verdict"] == "cancel"

    def test_a_lease_that_ran_out_is_reaped(self, scene: Scene) -> None:
        job_id = scene.insert()
        scene.claim()
        scene.as_worker("select * from public.heartbeat_jobs(%s::uuid[], %s, -1)", [job_id], scene.token)
        assert scene.as_worker("select public.reap_jobs(%s) as reaped", scene.target) == [{"reaped": 1}]
        assert scene.status(job_id) == "queued"

    def test_a_user_sees_how_many_come_first(self, scene: Scene) -> None:
        scene.insert()
        job_id = scene.insert()
        assert scene.as_user("select public.jobs_ahead(%s) as ahead", job_id) == [{"ahead": 1}]

    def test_nobody_else_sees_or_changes_it(self, scene: Scene) -> None:
        job_id, other = scene.insert(), scene.database.sign_up()
        for table, column in {"jobs": "id", "job_events": "job_id", "job_audit": "job_id"}.items():
            statement = f"select 1 from public.{table} where {column} = %s"
            assert scene.as_user(statement, job_id) != []
            assert scene.as_user(statement, job_id, user=other) == []
        scene.as_user("update public.jobs set cancel_requested_at = now() where id = %s", job_id, user=other)
        assert scene.status(job_id) == "queued"
        for table in ("jobs", "job_images", "job_events", "workers", "job_audit", "fleet", "queue_health"):
            with pytest.raises(REFUSED):
                scene.requests.ask("anon", f"select 1 from public.{table}")

    @pytest.mark.parametrize(
        "statement",
        [
            "select public.claim_jobs('w', 'sdxl', '{sdxl_image_fast}', gen_random_uuid())",
            "insert into public.job_images select",
            "update public.jobs set status = 'completed' where id = id",
            "delete from public.workers where id = id",
            "update public.fleet_settings set max_workers = 9 where target_worker = target_worker",
            "select token from private.leases",
            "select private.cron_purge()",
            "select private.send('{}', 'wake', 'worker:sdxl')",
        ],
    )
    def test_a_user_may_do_nothing_of_a_worker(self, scene: Scene, statement: str) -> None:
        with pytest.raises(REFUSED):
            scene.as_user(statement)

    def test_the_quota_and_the_names_of_the_rules_reach_the_browser(self, scene: Scene) -> None:
        with pytest.raises(psycopg.errors.CheckViolation, match="batch_size_is_1_3_or_6"):
            scene.insert(batch_size=2)
        with pytest.raises(REFUSED, match="status must be queued"):
            scene.insert(status="completed")


class TestRealtime:
    TOPICS = "select topic, event from realtime.messages where topic in (%s, %s) order by inserted_at, event desc"

    def test_the_user_and_the_workers_hear_of_a_job(self, scene: Scene) -> None:
        scene.report()
        job_id = scene.insert()
        heard = scene.owner(self.TOPICS, f"user:{scene.user}", f"worker:{scene.target}")
        assert {(row["topic"], row["event"]) for row in heard} == {
            (f"user:{scene.user}", "INSERT"),
            (f"worker:{scene.target}", "wake"),
        }
        scene.claim()
        scene.complete(job_id)
        heard = scene.owner(self.TOPICS, f"user:{scene.user}", "")
        assert [row["event"] for row in heard if row["event"] == "UPDATE"] == ["UPDATE", "UPDATE"]

    def test_only_ones_own_topics_may_be_joined(self, scene: Scene) -> None:
        """Realtime asks as the user, under the topic, whether a message could be read."""
        job_id, other = scene.insert(), scene.database.sign_up()

        def may_join(topic: str, user: str) -> bool:
            return scene.as_user("select 1 from realtime.messages limit 1", user=user, settings={"realtime.topic": topic}) != []

        for topic in (f"user:{scene.user}", f"job:{job_id}"):
            assert may_join(topic, scene.user)
            assert not may_join(topic, other)
        assert not may_join(f"worker:{scene.target}", scene.user)
        with pytest.raises(REFUSED):
            scene.as_user("insert into realtime.messages (topic, extension) values (%s, 'broadcast')", f"user:{scene.user}")

    def test_jobs_and_images_are_published(self, scene: Scene) -> None:
        published = "select tablename from pg_publication_tables where pubname = 'supabase_realtime' and tablename ~ '^job'"
        assert {row["tablename"] for row in scene.owner(published)} == {"jobs", "job_images"}


class TestStorage:
    def test_a_picture_is_seen_by_its_owner_once_it_is_published(self, scene: Scene) -> None:
        job_id, other = scene.insert(), scene.database.sign_up()
        scene.claim()
        path = f"{scene.user}/{job_id}/1-0.png"
        see = "select name from storage.objects where name = %s"
        scene.upload(TYPES[0], f"{scene.user}/{job_id}/0-0.png")
        assert scene.as_user(see, f"{scene.user}/{job_id}/0-0.png") == []
        scene.complete(job_id)
        assert scene.as_user(see, path) == [{"name": path}]
        assert scene.as_user(see, path, user=other) == []
        assert scene.requests.ask("anon", see, (path,)) == []

    def test_references_go_into_ones_own_folder_only(self, scene: Scene) -> None:
        put = "insert into storage.objects (bucket_id, name) values ('reference_images', %s)"
        scene.as_user(put, f"{scene.user}/cat.png")
        with pytest.raises(REFUSED):
            scene.as_user(put, f"{scene.database.sign_up()}/cat.png")
        with pytest.raises(REFUSED):
            scene.requests.ask("anon", put, (f"{scene.user}/dog.png",))

    def test_the_storage_server_deletes_a_reference_for_its_owner(self, scene: Scene) -> None:
        path = f"{scene.user}/cat.png"
        scene.as_user("insert into storage.objects (bucket_id, name) values ('reference_images', %s)", path)
        remove = "delete from storage.objects where name = %s returning name"
        with pytest.raises(REFUSED, match="Direct deletion"):
            scene.as_user(remove, path)
        by_storage = {"storage.allow_delete_query": "true"}
        assert scene.as_user(remove, path, user=scene.database.sign_up(), settings=by_storage) == []
        assert scene.as_user(remove, path, settings=by_storage) == [{"name": path}]

    def test_orphans_are_found(self, scene: Scene) -> None:
        job_id = scene.insert()
        scene.claim()
        path = scene.complete(job_id)
        orphan = path.replace("1-0", "0-0")
        scene.upload(TYPES[0], orphan)
        found = scene.to_be_removed()
        assert orphan in found
        assert path not in found


class TestWorkers:
    def test_a_worker_reports_and_an_operator_sees_it(self, scene: Scene) -> None:
        scene.report()
        seen = "select state from public.fleet where target_worker = %s"
        assert scene.as_worker(seen, scene.target) == [{"state": "ready"}]
        assert scene.as_user(seen, scene.target) == []
        assert scene.owner(seen, scene.target) == [{"state": "ready"}]
        assert scene.as_worker("select live_workers from public.queue_health where target_worker = %s", scene.target) == [
            {"live_workers": 1}
        ]
        scene.as_worker("delete from public.workers where target_worker = %s", scene.target)
        assert scene.as_worker(seen, scene.target) == []

    def test_old_jobs_are_retired(self, scene: Scene) -> None:
        job_id = scene.insert()
        scene.claim()
        path = scene.complete(job_id)
        scene.as_worker("update public.retention set days = 1, next_at = now() - interval '1 hour' where only_row")
        with scene.database.connected("supabase_admin") as owner, owner.transaction():
            owner.execute("set local session_replication_role = replica")  # a finished job never changes
            owner.execute("update public.jobs set completed_at = now() - interval '2 days' where id = %s", (job_id,))
        try:
            assert scene.as_worker("select public.retire_jobs() as jobs") == [{"jobs": 1}]
        finally:
            scene.as_worker("update public.retention set days = null where only_row")
        assert scene.as_user("select 1 from public.jobs where id = %s", job_id) == []
        assert path in scene.to_be_removed()

    def test_a_user_deletes_jobs_and_everything(self, scene: Scene) -> None:
        published, running, waiting = scene.insert(), scene.insert(), scene.insert()
        scene.claim()
        path = scene.complete(published)
        scene.claim()
        reference = f"{scene.user}/reference.png"
        scene.upload("reference_images", reference)
        assert scene.as_user("select public.delete_jobs(array[%s, %s]::uuid[]) as jobs", published, running) == [{"jobs": 2}]
        assert path in scene.to_be_removed()
        assert scene.as_user("select public.delete_everything() as jobs") == [{"jobs": 1}]
        assert scene.as_user("select 1 from public.jobs where id = %s", waiting) == []
        assert reference in scene.to_be_removed()

    def test_a_worker_reads_which_migrations_there_are(self, scene: Scene) -> None:
        """Here they were applied by hand, and there is no list."""
        assert scene.as_worker("select public.applied_migrations() as versions") == [{"versions": None}]

    def test_the_edge_functions_start_and_stop_pods(self, scene: Scene) -> None:
        scene.owner("insert into public.fleet_settings (target_worker, max_workers) values (%s, 1)", scene.target)
        try:
            scene.insert()
            [start] = scene.as_worker("select * from public.claim_starts(%s)", scene.target)
            scene.as_worker("select public.report_start(%s, 'pod', %s)", start["id"], scene.target)
            scene.report(pod_id=scene.target)
            scene.report("stopped", pod_id=scene.target)
            [stop] = scene.as_worker("select * from public.claim_stops(%s)", scene.target)
            assert stop["pod_id"] == scene.target
            scene.as_worker("select public.report_stop(%s)", stop["id"])
            states = scene.as_worker("select state from public.worker_starts where target_worker = %s", scene.target)
            assert states == [{"state": "ended"}]
        finally:
            scene.owner("delete from public.fleet_settings where target_worker = %s", scene.target)


def test_every_function_of_the_workers_is_tried_here(database: Database) -> None:
    """So that none answers 21000 on a hosted project alone."""
    with database.connected("postgres") as postgres:
        rows = postgres.execute(
            """select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype
                  and has_function_privilege('service_role', p.oid, 'execute') and p.proname <> 'today'"""
        ).fetchall()
    text = Path(__file__).read_text()
    assert [row["proname"] for row in rows if f"public.{row['proname']}(" not in text] == []


def test_the_snippets_run_in_the_sql_editor(database: Database) -> None:
    """Which is postgres there."""
    snippets = sorted((ROOT / "supabase" / "snippets").glob("*.sql"))
    assert snippets
    with database.connected("postgres") as postgres, postgres.transaction(force_rollback=True):
        for snippet in snippets:
            postgres.execute(snippet.read_text())
