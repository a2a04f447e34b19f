"""Who asks, what they ask of, and how they are answered: the scene of the role matrix and the page that is made from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast
from uuid import uuid4

import httpx
import psycopg
from postgrest.exceptions import APIError
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from storage3.exceptions import StorageApiError
from storage3.types import FileOptions
from supabase import Client, ClientOptions, create_client
from websockets.sync.client import connect

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, sign_up
from tests.pace import TIMEOUT_SECONDS

OUTPUTS = ("sdxl_image_fast", "sdxl_image_high")
REFERENCES = "reference_images"
TARGET = "nobody"  # no worker listens to it
PICTURE = b"what the owner sees"
OPTIONS: FileOptions = {"content-type": "image/png"}


class Role(StrEnum):
    ANONYMOUS = "anonymous"
    OWNER = "owner"
    OTHER = "other"
    OPERATOR = "operator"
    SERVICE = "service"


class Verdict(StrEnum):
    YES = "yes"
    NOTHING = "nothing"  # no error, and nothing is seen or changed: row security hides what is there
    REFUSED = "refused"  # an error that says so
    UNKNOWN = "unknown"  # an error as if there were no such thing


ANSWERS = {
    Verdict.REFUSED: {"42501", "403", "428C9", "55000", "PT409"},  # no right to it; a generated column; a view; a finished job
    Verdict.UNKNOWN: {"PGRST106", "PGRST202", "404"},  # a schema, a function, an object or a bucket
}

Matrix = dict[str, dict[Role, Verdict]]
Attempt = Callable[["World", "Actor"], object]


def verdict_of(attempt: Callable[[], object]) -> Verdict:
    """How the attempt ends. An error that is no refusal is the test's own mistake, and raised."""
    try:
        answer = attempt()
    except (APIError, StorageApiError) as error:
        code = str(error.code if isinstance(error, APIError) else error.status)
        for verdict, codes in ANSWERS.items():
            if code in codes:
                return verdict
        raise
    if isinstance(answer, Verdict):
        return answer
    return Verdict.YES if answer else Verdict.NOTHING


def expectations(table: str) -> Matrix:
    """Reads a table whose first line names the roles; cells stand two or more spaces apart."""
    head, *lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.strip().splitlines()]
    assert head == list(Role), head
    matrix = {name: dict(zip(Role, map(Verdict, verdicts), strict=True)) for name, *verdicts in lines}
    assert len(matrix) == len(lines), "a row stands there twice"
    return matrix


@dataclass(frozen=True, kw_only=True)
class Actor:
    role: Role
    client: Client
    key: str
    id: str = ""
    token: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"apikey": self.key, "authorization": f"Bearer {self.token or self.key}"}


class World:
    """The owner has a finished job of each type, a waiting and a running one; objects of each kind lie in each bucket.

    `lay_out` brings back exactly that, `state` tells one world from another.
    """

    def __init__(self, supabase: EmbeddedSupabase, db: Database) -> None:
        self.supabase, self.db = supabase, db
        options = ClientOptions(auto_refresh_token=False)
        owner, other, operator = sign_up(supabase), sign_up(supabase), sign_up(supabase, app_metadata={"role": "operator"})
        public, secret = supabase.publishable_key, supabase.secret_key
        self.actors = {
            Role.ANONYMOUS: Actor(role=Role.ANONYMOUS, client=create_client(supabase.url, public, options), key=public),
            Role.OWNER: Actor(role=Role.OWNER, client=owner.client, key=public, id=owner.id, token=owner.access_token),
            Role.OTHER: Actor(role=Role.OTHER, client=other.client, key=public, id=other.id, token=other.access_token),
            Role.OPERATOR: Actor(
                role=Role.OPERATOR, client=operator.client, key=public, id=operator.id, token=operator.access_token
            ),
            Role.SERVICE: Actor(role=Role.SERVICE, client=create_client(supabase.url, secret, options), key=secret),
        }
        self.owner, self.service = self.actors[Role.OWNER], self.actors[Role.SERVICE]
        self.finished = {bucket: str(uuid4()) for bucket in OUTPUTS}
        self.waiting, self.running, self.lease_token, self.start_id = (str(uuid4()) for _ in range(4))
        given = ("storage.buckets", "public.negative_presets", "public.fleet_settings", "public.retention", "private.sweep")
        self._given = {table: self._rows(table) for table in given}
        self.lay_out()

    def published(self, bucket: str) -> str:
        return f"{self.owner.id}/{self.finished[bucket]}/1-0.png" if bucket in OUTPUTS else f"{self.owner.id}/cat.png"

    def unpublished(self, bucket: str) -> str:
        """What a worker uploaded for a job that has not finished, or that was lost."""
        return f"{self.owner.id}/{self.running}/1-0.png"

    def lay_out(self) -> None:
        with self.db.transaction():
            self.db.execute("set local session_replication_role = replica")  # no triggers: nothing is sent, nothing cascades
            tables = (
                "private.leases",
                "private.removals",
                "public.jobs",
                "public.job_images",
                "public.job_events",
                "public.workers",
                "public.worker_starts",
                "storage.objects",
            )
            for table in (*tables, *self._given):
                self.db.execute(f"delete from {table}")
            for table, rows in self._given.items():
                self._insert(table, rows)
            self._insert("public.jobs", [self._job(id=self.waiting), self._job(id=self.running, status="processing")])
            self._insert("private.leases", [self._lease(self.waiting), self._lease(self.running, **self._held)])
            for bucket, job_id in self.finished.items():
                self._insert("public.jobs", [self._job(id=job_id, job_type=bucket, status="completed", completed_at="2026-01-01")])
                self._insert("private.leases", [self._lease(job_id, state="ended")])
                self._insert("public.job_images", [self.image(bucket)])
            self.db.execute("insert into public.job_events (job_id, status, attempt) select id, 'queued', 0 from public.jobs")
            self._insert("public.workers", [self.worker()])
            self.db.execute("insert into public.worker_starts (id, target_worker) values (%s, %s)", (self.start_id, TARGET))
        for bucket in (*OUTPUTS, REFERENCES):
            for path in {self.published(bucket), self.unpublished(bucket)} if bucket in OUTPUTS else {self.published(bucket)}:
                self.service.client.storage.from_(bucket).upload(path, PICTURE, {**OPTIONS, "upsert": "true"})
        self._state = self.state()

    @property
    def _held(self) -> dict[str, object]:
        return {"state": "held", "claims": 1, "token": self.lease_token, "worker": "w", "expires_at": "2100-01-01"}

    def _lease(self, job_id: str, **columns: object) -> dict[str, object]:
        place = {"job_type": "sdxl_image_fast", "target_worker": TARGET, "priority": 100, "run_at": "2026-01-01", "cost": 1}
        return {"job_id": job_id, "user_id": self.owner.id, "state": "waiting", "fair_key": 1} | place | columns

    def _job(self, **columns: object) -> dict[str, object]:
        return {"user_id": self.owner.id, "job_type": "sdxl_image_fast", "prompt": "a cat", "target_worker": TARGET} | columns

    def image(self, bucket: str = OUTPUTS[0], index: int = 0) -> dict[str, Any]:
        return {
            "job_id": self.finished[bucket],
            "index": index,
            "bucket": bucket,
            "path": self.published(bucket).replace("-0", f"-{index}"),
            "thumbnail_path": self.published(bucket).replace("-0.png", f"-{index}.thumb.webp"),
            "seed": 7,
            "width": 128,
            "height": 128,
            "mime_type": "image/png",
            "bytes": 9,
            "sha256": "0" * 64,
        }

    def worker(self, worker_id: str = "w") -> dict[str, Any]:
        return {"id": worker_id, "target_worker": TARGET, "host": "h", "version": "1", "state": "ready"}

    def _insert(self, table: str, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            columns = ", ".join(f'"{name}"' for name in row)
            self.db.execute(
                f"insert into {table} ({columns}) select {columns} from jsonb_populate_record(null::{table}, %s)", [Jsonb(row)]
            )

    def _rows(self, table: str) -> list[dict[str, Any]]:
        return [row["row"] for row in self.db.execute(f"select to_jsonb(t) as row from {table} t").fetchall()]

    def state(self) -> dict[str, str]:
        """A digest of every table that anybody could have changed."""
        tables = self.db.execute(
            """select format('%I.%I', schemaname, tablename) as name from pg_tables
                where schemaname in ('public', 'private') or (schemaname = 'storage' and tablename in ('objects', 'buckets'))"""
        ).fetchall()
        one = """select {0!r} as name, md5(coalesce(string_agg(r, '' order by r), '')) as digest
                   from (select (to_jsonb(t) - 'last_accessed_at')::text as r from {0} t) rows"""
        rows = self.db.execute(" union all ".join(one.format(row["name"]) for row in tables)).fetchall()
        return {row["name"]: row["digest"] for row in rows}

    def ask(self, role: Role, attempt: Attempt) -> Verdict:
        """Makes the attempt. What changed without an error is a `yes`, whatever the answer; afterwards the world is as before."""
        verdict = verdict_of(lambda: attempt(self, self.actors[role]))
        changed = {table for table, digest in self.state().items() if digest != self._state[table]}
        if changed:
            self.lay_out()
            verdict = Verdict.YES if verdict is Verdict.NOTHING else verdict
        assert verdict is Verdict.YES or not changed, f"{verdict}, and yet {changed} changed"
        return verdict

    def bytes_at(self, bucket: str) -> bytes:
        return self.service.client.storage.from_(bucket).download(self.published(bucket))


@contextmanager
def world(supabase: EmbeddedSupabase) -> Iterator[World]:
    with psycopg.connect(supabase.db_url, autocommit=True, row_factory=dict_row) as db:
        yield World(supabase, db)


class Ear:
    """One websocket to Realtime, spoken to without a client library, so that nothing forbidden stays unsaid."""

    def __init__(self, world: World, actor: Actor) -> None:
        url = world.supabase.url.replace("http", "ws", 1)
        self._actor, self._refs, self._joined = actor, 0, set[str]()
        self._socket = connect(f"{url}/realtime/v1/websocket?apikey={actor.key}&vsn=1.0.0", proxy=None)
        self.heard: list[dict[str, Any]] = []

    def __enter__(self) -> Ear:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def join(self, topic: str, *, private: bool = True, changes: list[dict[str, str]] | None = None) -> Verdict:
        config = {"private": private, "broadcast": {"ack": True, "self": True}, "postgres_changes": changes or []}
        self.say(topic, "phx_join", {"config": config, "access_token": self._actor.token})
        if (verdict := self._answer()) is Verdict.YES:
            self._joined.add(topic)
        return verdict

    def send(self, topic: str, text: str) -> Verdict | None:
        """None where no answer is due: who has joined but may not speak is not heard, and is not told."""
        self.say(topic, "broadcast", {"type": "broadcast", "event": "hello", "payload": {"text": text}})
        return None if topic in self._joined else self._answer()

    def say(self, topic: str, event: str, payload: dict[str, Any]) -> None:
        self._refs += 1
        message = {"topic": f"realtime:{topic}", "event": event, "payload": payload, "ref": str(self._refs), "join_ref": "1"}
        self._socket.send(json.dumps(message))

    def until(self, event: str) -> list[dict[str, Any]]:
        """All that was heard up to the message, or the broadcast, of that name."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while event not in ((message := self._next(deadline))["event"], message["payload"].get("event")):
            self.heard.append(message)
        return [*self.heard, message]

    def _answer(self) -> Verdict:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (message := self._next(deadline))["event"] != "phx_reply" or message["ref"] != str(self._refs):
            self.heard.append(message)
        return Verdict.YES if message["payload"]["status"] == "ok" else Verdict.REFUSED

    def _next(self, deadline: float) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic()))))


def broadcast_by_http(world: World, actor: Actor, topic: str, text: str, *, single: bool) -> httpx.Response:
    at = f"{world.supabase.url}/realtime/v1/api/broadcast"
    if single:
        return httpx.post(f"{at}/{topic}/events/hello?private=true", json={"text": text}, headers=actor.headers)
    message = {"topic": topic, "event": "hello", "payload": {"text": text}, "private": True}
    return httpx.post(at, json={"messages": [message]}, headers=actor.headers)


def markdown(sections: dict[str, Matrix], *, joined: set[str]) -> str:
    """The matrix as it was seen, one table a section. In a `joined` one, places with the same verdicts on an action share a row."""
    lines = []
    for section, matrix in sections.items():
        rows: dict[tuple[str, ...], list[str]] = {}
        for name, cells in matrix.items():
            place, _, action = name.partition(": ")
            verdicts = [f"**{cells[role]}**" if cells.get(role) is Verdict.YES else cells.get(role, "") for role in Role]
            rows.setdefault((action, *verdicts, "" if section in joined else place), []).append(f"`{place}`")
        lines += [f"## {section}", "", f"| | | {' | '.join(Role)} |", "|---|---|" + "---|" * len(Role)]
        lines += [f"| {', '.join(places)} | {' | '.join(row[:-1])} |" for row, places in rows.items()]
        lines.append("")
    return "\n".join(lines)
