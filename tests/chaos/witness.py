"""What the database saw, read back after the run."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from ourvidz_sdxl.local import EmbeddedSupabase

Database = psycopg.Connection[DictRow]
TERMINAL = ("completed", "failed", "cancelled")
CONNECT_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class LeaseSeen:
    """One lease from its claim to its end, on the wall clock; `end` is None where it never ended."""

    job_id: str
    claims: int
    worker: str
    token: str
    start: float
    end: float | None
    ended_as: str | None
    reaped: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    jobs: dict[str, DictRow]
    changes: dict[str, list[DictRow]]
    events: dict[str, list[DictRow]]
    images: dict[str, list[DictRow]]
    objects: dict[tuple[str, str], DictRow]
    uploads: list[DictRow]
    leases: dict[str, list[LeaseSeen]]


class Look:
    """A superuser's connection that outlives restarts of Postgres. For one thread at a time."""

    def __init__(self, supabase: EmbeddedSupabase) -> None:
        self._url = supabase.db_url
        self._lock = threading.Lock()
        self._connection: Database | None = None

    def __call__(self, query: str, values: Sequence[Any] = ()) -> list[DictRow]:
        deadline = time.monotonic() + CONNECT_PATIENCE_SECONDS
        with self._lock:
            while True:
                try:
                    if self._connection is None:
                        self._connection = psycopg.connect(self._url, autocommit=True, row_factory=dict_row)
                    cursor = self._connection.execute(query, values or None)
                    return cursor.fetchall() if cursor.description else []
                except psycopg.OperationalError:
                    if self._connection:
                        self._connection.close()
                    self._connection = None
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def close(self) -> None:
        if self._connection:
            self._connection.close()


class Uploads:
    """Tells of each new object in the moment of its commit, while Postgres is there."""

    def __init__(self, supabase: EmbeddedSupabase) -> None:
        self._url = supabase.db_url
        self._arrived = threading.Condition()
        self._jobs: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Uploads:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def next_of(self, job_ids: Set[str], timeout_seconds: float) -> str | None:
        """The first of these jobs that uploads from now on; `job_ids` may grow meanwhile."""
        deadline = time.monotonic() + timeout_seconds
        with self._arrived:
            looked_at = len(self._jobs)
            while True:
                for job_id in self._jobs[looked_at:]:
                    if job_id in job_ids:
                        return job_id
                looked_at = len(self._jobs)
                if not self._arrived.wait(deadline - time.monotonic()):
                    return None

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True) as connection:
                    connection.execute("listen chaos_uploads")
                    while not self._over.is_set():
                        for notice in connection.notifies(timeout=0.5):
                            with self._arrived:
                                self._jobs.append(notice.payload.split("/")[1])
                                self._arrived.notify_all()
            except psycopg.OperationalError:
                self._over.wait(0.2)


def install(look: Look) -> None:
    look(Path(__file__).with_suffix(".sql").read_text())


def read(look: Look) -> Seen:
    changes = _by_job(look("select * from chaos.changes order by id"))
    return Seen(
        jobs={
            str(row["id"]): row
            for row in look(
                "select j.*, l.state as lease, l.expires_at, l.worker, l.claims"
                " from public.jobs j left join private.leases l on l.job_id = j.id"
            )
        },
        changes=changes,
        events=_by_job(look("select * from public.job_events order by id")),
        images=_by_job(look("select * from public.job_images order by job_id, index")),
        objects={(row["bucket_id"], row["name"]): row for row in look("select * from storage.objects")},
        uploads=look("select * from chaos.objects where operation <> 'DELETE' order by id"),
        leases={job_id: leases_of(rows) for job_id, rows in changes.items()},
    )


def leases_of(changes: Sequence[DictRow]) -> list[LeaseSeen]:
    """The leases of one job in their order, from its changes."""
    leases: list[LeaseSeen] = []
    opened: DictRow | None = None
    for change in changes:
        if change["old_status"] == "processing" and opened:
            leases.append(_lease(opened, change))
            opened = None
        if change["new_status"] == "processing":
            opened = change
    if opened:
        leases.append(_lease(opened, None))
    return leases


def _lease(opened: DictRow, closed: DictRow | None) -> LeaseSeen:
    at: datetime = opened["at"]
    return LeaseSeen(
        job_id=str(opened["job_id"]),
        claims=opened["claims"],
        worker=opened["worker"],
        token=str(opened["token"]),
        start=at.timestamp(),
        end=closed["at"].timestamp() if closed else None,
        ended_as=closed["new_status"] if closed else None,
        reaped=bool(closed) and closed["error_code"] == "lease_expired",  # type: ignore[index]
    )


def _by_job(rows: Sequence[DictRow]) -> dict[str, list[DictRow]]:
    grouped: dict[str, list[DictRow]] = defaultdict(list)
    for row in rows:
        grouped[str(row["job_id"])].append(row)
    return grouped
