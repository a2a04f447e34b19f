"""What a stretch of time cost Postgres, Realtime's gateway and the simulator itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.2
# by name and schema: a project may have tables of these names elsewhere
QUEUE = "relid in ('public.jobs'::regclass, 'private.leases'::regclass)"
COUNTERS = f"""
    select (select xact_commit from pg_stat_database where datname = current_database()),
           pg_current_wal_lsn() - '0/0'::pg_lsn,
           (select sum(n_tup_upd) from pg_stat_user_tables where {QUEUE}),
           (select sum(n_tup_hot_upd) from pg_stat_user_tables where {QUEUE}),
           (select sum(blks_read) from pg_stat_database where datname = current_database()),
           (select sum(blks_hit) from pg_stat_database where datname = current_database())
"""
WAITS = """
    select coalesce(wait_event_type, 'CPU') from pg_stat_activity
     where state = 'active' and backend_type = 'client backend' and pid <> pg_backend_pid()
"""
EVENTS = "select event, regexp_replace(topic, '^user:.*', 'user'), count(*) from realtime.messages group by 1, 2"
DEAD = f"""
    select sum(n_dead_tup)::bigint from pg_stat_user_tables where {QUEUE}
"""


@dataclass(kw_only=True)
class Watched:
    """Filled in when the stretch ends. Cores: CPU seconds a second."""

    seconds: float = 0.0
    postgres_cores: float = 0.0
    gateway_cores: float = 0.0
    simulator_cores: float = 0.0
    loop_lag_ms: float = 0.0  # worst
    load: float = 0.0
    commits: float = 0.0
    wal_bytes: float = 0.0
    updates: float = 0.0
    hot_percent: float = 0.0
    read_percent: float = 0.0  # of the pages asked for, those that were not in Postgres' own cache
    dead_rows: int = 0
    waits: dict[str, float] = field(default_factory=dict)  # connections in each state, on average
    events: dict[tuple[str, str], int] = field(default_factory=dict)  # broadcasts to users and to workers, by event and topic


class Watch:
    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._db = db
        row = db.execute("select pg_backend_pid()").fetchone()
        assert row
        self._postmaster = parent(row[0])
        self._gateway = parent(self._postmaster)

    @asynccontextmanager
    async def stretch(self) -> AsyncIterator[Watched]:
        watched = Watched()
        self._db.execute("truncate realtime.messages")
        before, begun = self._read(), time.perf_counter()
        waits: dict[str, int] = {}
        samples = asyncio.create_task(self._sample(waits, watched))
        try:
            yield watched
        finally:
            samples.cancel()
            seconds = watched.seconds = time.perf_counter() - begun
            after = self._read()
            cpu, counters = ([y - x for x, y in zip(one, two, strict=True)] for one, two in zip(before, after, strict=True))
            watched.postgres_cores, watched.gateway_cores, watched.simulator_cores = (ticks / seconds for ticks in cpu)
            watched.commits, watched.wal_bytes, watched.updates = (count / seconds for count in counters[:3])
            watched.hot_percent = 100 * counters[3] / max(1, counters[2])
            watched.read_percent = 100 * counters[4] / max(1, counters[4] + counters[5])
            watched.load = os.getloadavg()[0]
            count = max(1, waits.pop("samples", 0))
            watched.waits = {kind: number / count for kind, number in waits.items()}
            watched.events = {(event, topic): number for event, topic, number in self._db.execute(EVENTS.encode()).fetchall()}
            dead = self._db.execute(DEAD).fetchone()
            watched.dead_rows = dead[0] if dead else 0

    def _read(self) -> tuple[list[float], list[float]]:
        self._db.execute("select pg_stat_clear_snapshot()")
        row = self._db.execute(COUNTERS.encode()).fetchone()
        assert row
        cpu = [family_seconds(self._postmaster), own_seconds(self._gateway), time.process_time()]
        return cpu, [float(value) for value in row]

    async def _sample(self, waits: dict[str, int], watched: Watched) -> None:
        """In a thread, for a busy loop must not be what is measured; and how late the loop itself is."""
        while True:
            due = time.perf_counter() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            watched.loop_lag_ms = max(watched.loop_lag_ms, 1000 * (time.perf_counter() - due))
            for (kind,) in await asyncio.to_thread(lambda: self._db.execute(WAITS.encode()).fetchall()):
                waits[kind] = waits.get(kind, 0) + 1
            waits["samples"] = waits.get("samples", 0) + 1


def stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name, which may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent(pid: int) -> int:
    return int(stat(pid)[1])


def own_seconds(pid: int) -> float:
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


def family_seconds(pid: int) -> float:
    """CPU of a process, of its children, and of those that have ended."""
    fields = stat(pid)
    seconds = sum(int(one) for one in fields[11:15]) / TICKS
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if parent(int(entry.name)) == pid:
                    seconds += own_seconds(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return seconds
