"""One embedded Supabase for all integration tests, and fresh users on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import DeadlockDetected
from psycopg.rows import DictRow, dict_row
from supabase import Client, ClientOptions, create_client
from tenacity import Retrying, retry_if_exception_type

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.pace import TIMEOUT_SECONDS
from tests.processes import WorkerProcess, scratch_supabase

Database = psycopg.Connection[DictRow]


@pytest.fixture(scope="session")
def supabase() -> Iterator[EmbeddedSupabase]:
    with scratch_supabase() as running:
        yield running


@pytest.fixture
def db(supabase: EmbeddedSupabase) -> Iterator[Database]:
    """A superuser's connection, for looking and for playing the database's part. Starts with an empty queue."""
    with psycopg.connect(supabase.db_url, autocommit=True, row_factory=dict_row) as connection:
        for attempt in Retrying(retry=retry_if_exception_type(DeadlockDetected)):  # with a worker's claim
            with attempt:
                connection.execute("truncate public.jobs cascade")
        yield connection


@pytest.fixture
def long_pauses(db: Database) -> Iterator[None]:
    """After an attempt that failed, the next one is put off for an hour, or until the test moves run_at."""
    [backoff] = db.execute("select pg_get_functiondef('private.backoff'::regproc) as sql")
    signature, _, _ = backoff["sql"].partition("AS $function$")
    db.execute(f"{signature} as $$ select interval '1 hour' $$")
    yield
    db.execute(backoff["sql"])


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who signed up, with the client that their browser would have."""

    id: str
    client: Client
    access_token: str
    target: str = "sdxl"

    def insert(self, **columns: Any) -> dict[str, Any]:
        job = {"job_type": "sdxl_image_fast", "prompt": "a red circle on a blue background", "target_worker": self.target} | columns
        return cast("dict[str, Any]", self.client.table("jobs").insert(job).execute().data[0])

    def job(self, job_id: str) -> dict[str, Any]:
        return cast("dict[str, Any]", self.client.table("jobs").select("*").eq("id", job_id).single().execute().data)

    def images(self, job_id: str) -> list[dict[str, Any]]:
        answer = self.client.table("job_images").select("*").eq("job_id", job_id).order("index").execute()
        return cast("list[dict[str, Any]]", answer.data)


def sign_up(supabase: EmbeddedSupabase, *, app_metadata: dict[str, Any] | None = None) -> User:
    """A new user; `app_metadata` is given to them with the service key, and stands in the token that they have from then on."""
    client = create_client(supabase.url, supabase.publishable_key, ClientOptions(auto_refresh_token=False))
    answer = client.auth.sign_up({"email": f"{uuid4().hex}@example.com", "password": uuid4().hex})
    if app_metadata and answer.user:
        admin = create_client(supabase.url, supabase.secret_key, ClientOptions(auto_refresh_token=False)).auth.admin
        admin.update_user_by_id(answer.user.id, {"app_metadata": app_metadata})
        answer = client.auth.refresh_session()
    assert answer.user
    assert answer.session
    return User(id=answer.user.id, client=client, access_token=answer.session.access_token)


def wait_until(db: Database, condition: str, *values: Any) -> None:
    """Looks again and again until the SQL condition holds. For what no event tells of."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not db.execute(f"select ({condition}) is true as holds", values).fetchone()["holds"]:  # type: ignore[index]
        assert time.monotonic() < deadline, f"never came true: {condition}"
        time.sleep(0.02)


@pytest.fixture
def user(supabase: EmbeddedSupabase) -> User:
    return sign_up(supabase)


@pytest.fixture
def other(supabase: EmbeddedSupabase) -> User:
    return sign_up(supabase)


@pytest.fixture
def service(supabase: EmbeddedSupabase) -> Client:
    return create_client(supabase.url, supabase.secret_key, ClientOptions(auto_refresh_token=False))


@pytest.fixture(scope="session")
def session_worker(supabase: EmbeddedSupabase) -> Iterator[WorkerProcess]:
    """A real worker with the bundled model, kept for all tests that need no more. It keeps house too rarely to get in their way."""
    with WorkerProcess(supabase, poll_interval_connected_seconds=2, lease_seconds=3600) as running:
        yield running
