"""pg_cron costs a project nothing that it does not need: no fleet, no schedule of it; and the rows of our own runs go after a day.

The extension is the SQL half of pg_cron (sql/extensions), whose jobs these tests run themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.rows import DictRow

from tests.platform.conftest import new_project
from tests.platform.database import Database, Requests
from tests.platform.server import Server

TARGET = "sdxl"
DETAILS = """
  insert into cron.job_run_details (jobid, database, username, command, status, start_time, end_time)
  values (1, 'postgres', %(user)s, %(command)s, 'succeeded', now() - %(age)s::interval, now() - %(age)s::interval) returning runid
"""


class Cron:
    def __init__(self, database: Database) -> None:
        self.database = database

    def ask(self, statement: str, values: Any = None, role: str = "postgres") -> list[DictRow]:
        with self.database.connected(role) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    @property
    def jobs(self) -> dict[str, str]:
        return {row["jobname"]: row["schedule"] for row in self.ask("select jobname, schedule from cron.job")}

    def run(self, name: str) -> None:
        """As pg_cron does: the command, as the user who scheduled it."""
        [job] = self.ask("select command, username from cron.job where jobname = %s", (name,))
        self.ask(job["command"], role=job["username"])

    def runs(self) -> list[int]:
        return [row["runid"] for row in self.ask("select runid from cron.job_run_details", role="supabase_admin")]

    def ran(self, command: str, age: str | None, user: str = "postgres") -> int:
        """A run that ended so long ago; without an age one that never began."""
        [row] = self.ask(DETAILS, {"command": command, "age": age, "user": user}, role="supabase_admin")
        return int(row["runid"])


@pytest.fixture
def cron(server: Server, request: pytest.FixtureRequest) -> Cron:
    name = request.node.name
    database = new_project(server, f"cron_{name[:50]}", defaults="new", private="own")
    database.migrate()
    return Cron(database)


@pytest.fixture
def worker(cron: Cron) -> Iterator[Requests]:
    with cron.database.requests() as requests:
        yield requests


def allow(worker: Requests, workers: int) -> None:
    worker.ask("service_role", "update public.fleet_settings set max_workers = %s where target_worker = %s", (workers, TARGET))


def test_a_project_without_a_fleet_has_no_schedule_of_it(cron: Cron) -> None:
    assert cron.jobs == {"reap_jobs": "* * * * *", "purge_cron_runs": "17 * * * *"}


def test_the_fleet_is_run_while_workers_are_allowed(cron: Cron, worker: Requests) -> None:
    allow(worker, 2)
    assert cron.jobs["call_fleet"] == "10 seconds"
    cron.run("call_fleet")
    assert "call_fleet" in cron.jobs
    allow(worker, 0)
    cron.run("call_fleet")
    assert "call_fleet" not in cron.jobs
    allow(worker, 1)
    assert "call_fleet" in cron.jobs


def test_the_fleet_is_run_until_the_last_pod_is_gone(cron: Cron, worker: Requests) -> None:
    """Also when removing it has to be tried again after no more workers are allowed."""
    allow(worker, 1)
    user = cron.database.sign_up()
    worker.ask("authenticated", "insert into public.jobs (job_type, prompt) values ('sdxl_image_fast', 'a cat')", user=user)
    [start] = worker.ask("service_role", "select id from public.claim_starts(%s)", (TARGET,))
    worker.ask("service_role", "select public.report_start(%s, 'pod', 'pod-1')", (start["id"],))
    facts = '{"target_worker": "sdxl", "host": "h", "version": "1", "pod_id": "pod-1"}'
    worker.ask("service_role", "select public.report_worker('w', 'ready', %s)", (facts,))
    allow(worker, 0)
    worker.ask("service_role", "select public.report_worker('w', 'stopped', %s)", (facts,))
    [stop] = worker.ask("service_role", "select id from public.claim_stops(%s)", (TARGET,))
    worker.ask("service_role", "select public.report_stop(%s, 'RunPod answers 500')", (stop["id"],))
    cron.run("call_fleet")
    cron.ask("update public.worker_starts set next_try_at = now() where id = %s", (stop["id"],))
    assert worker.ask("service_role", "select pod_id from public.claim_stops(%s)", (TARGET,)) == [{"pod_id": "pod-1"}]
    worker.ask("service_role", "select public.report_stop(%s)", (stop["id"],))
    cron.run("call_fleet")
    assert "call_fleet" not in cron.jobs


def test_a_start_that_comes_as_the_schedule_ends_is_still_watched(cron: Cron, worker: Requests) -> None:
    """claim_starts has decided, and has not committed yet, when the operator allows no more workers and the fleet is run."""
    allow(worker, 1)
    user = cron.database.sign_up()
    worker.ask("authenticated", "insert into public.jobs (job_type, prompt) values ('sdxl_image_fast', 'a cat')", user=user)
    with cron.database.connected("postgres") as other, other.transaction():
        allow(worker, 0)
        cron.run("call_fleet")
        assert "call_fleet" not in cron.jobs
        other.execute("insert into public.worker_starts (target_worker) values (%s)", (TARGET,))
    assert "call_fleet" in cron.jobs


def test_the_edge_functions_are_called(cron: Cron, worker: Requests) -> None:
    for name, secret in {"functions_url": "https://p.supabase.co/functions/v1", "fleet_secret": "s"}.items():
        cron.ask("select vault.create_secret(%s, %s)", (secret, name))
    allow(worker, 1)
    user = cron.database.sign_up()
    worker.ask("authenticated", "insert into public.jobs (job_type, prompt) values ('sdxl_image_fast', 'a cat')", user=user)
    asked = cron.ask("select url, headers ->> 'Authorization' as key from net.http_request_queue", role="supabase_admin")
    assert asked == [{"url": "https://p.supabase.co/functions/v1/wake-worker", "key": "Bearer s"}]


def test_dead_leases_end_without_a_worker(cron: Cron, worker: Requests) -> None:
    user = cron.database.sign_up()
    worker.ask("authenticated", "insert into public.jobs (job_type, prompt) values ('sdxl_image_fast', 'a cat')", user=user)
    claim = "select public.claim_jobs('w', %s, '{sdxl_image_fast}', gen_random_uuid(), 1, -1)"
    worker.ask("service_role", claim, (TARGET,))
    cron.run("reap_jobs")
    assert cron.ask("select status from public.jobs") == [{"status": "queued"}]


def test_the_rows_of_our_runs_go_after_a_day_and_those_of_others_stay(cron: Cron) -> None:
    ours = "select private.cron_reap()"
    for age in ("3 days", "25 hours", None, "25 hours"):
        cron.ran(ours, age)
    cron.ran("select private.cron_fleet()", "2 days")  # of a schedule that has ended
    kept = [
        cron.ran("select my_report()", "30 days"),
        cron.ran(ours, "30 days", user="supabase_admin"),
        cron.ran(ours, "23 hours"),
        cron.ran(ours, None),
    ]
    cron.run("purge_cron_runs")
    assert cron.runs() == kept
