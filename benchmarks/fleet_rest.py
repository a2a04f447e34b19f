"""What PostgREST does with a call, and how long it takes: a bounded pool of connections, one transaction a call, a role, claims.

HTTP itself is left out. A call goes to Postgres as one message, so that the simulator, which shares the machine with Postgres,
takes little of it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

SERVICE = "service_role", '{"role": "service_role"}'
ACQUISITION_SECONDS = 10.0  # PostgREST's db-pool-acquisition-timeout, after which it answers 504


@dataclass(frozen=True, kw_only=True)
class Call:
    """When a call was made, on perf_counter's clock, whether it found something, and ms: inside Postgres without the commit, for a
    connection of the pool, and for the caller, with both and the way."""

    at: float
    full: bool
    inside_ms: float
    pool_ms: float
    whole_ms: float


@dataclass(kw_only=True)
class Calls:
    """What was called since the last `clear`, by function; and what was refused, by SQLSTATE."""

    made: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def clear(self) -> None:
        self.made.clear()
        self.refused.clear()


class Refused(Exception):
    """Postgres said no, or no connection was free in time; `code` is the SQLSTATE, or 504."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def literal(value: Any) -> str:
    """SQL for a value that we made ourselves."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return str(value)
        case [dict(), *_]:
            return literal(json.dumps(value)) + "::jsonb"
        case list():
            return "array[" + ", ".join(literal(one) for one in value) + "]"
        case dict():
            return literal(json.dumps(value)) + "::jsonb"
        case UUID():
            return f"'{value}'::uuid"
        case _:
            return "'" + str(value).replace("'", "''") + "'"


def as_user(user: str) -> tuple[str, str]:
    return "authenticated", json.dumps({"role": "authenticated", "sub": user})


class Rest:
    """`async with Rest(url, 10) as rest: await rest.rpc("claim_jobs", …)`."""

    def __init__(self, db_url: str, connections: int) -> None:
        self._db_url = db_url
        self._size = connections
        self._free: asyncio.LifoQueue[psycopg.AsyncConnection[Any]] = asyncio.LifoQueue()
        self._all: list[psycopg.AsyncConnection[Any]] = []
        self.calls = Calls()

    async def __aenter__(self) -> Rest:
        for _ in range(self._size):
            connection = await psycopg.AsyncConnection.connect(self._db_url, autocommit=True)
            self._all.append(connection)
            self._free.put_nowait(connection)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._all:
            await connection.close()

    async def rpc(self, function: str, *arguments: Any) -> Any:
        """A call with the service key; the first column of its first row. Raises Refused."""
        return await self.run(function, SERVICE, f"select * from public.{function}({', '.join(map(literal, arguments))})")

    async def run(self, name: str, role: tuple[str, str], statement: str) -> Any:
        """A statement in a transaction of its own; the first column of its first row. Raises Refused."""
        asked = time.perf_counter()
        connection = await self._connection()
        got = time.perf_counter()
        # for the simple protocol all of this is one statement, whose time inside, triggers included, is read before the commit
        text = (
            f"begin; select set_config('role', {literal(role[0])}, true),"
            f" set_config('request.jwt.claims', {literal(role[1])}, true); {statement};"
            "select extract(epoch from clock_timestamp() - statement_timestamp())::float8 * 1000; commit"
        )
        try:  # a worker that dies here does not take the connection along: its call goes on, as in PostgREST
            row, inside_ms = await asyncio.shield(asyncio.create_task(self._transaction(connection, text)))
        except psycopg.Error as error:
            self.calls.refused[error.sqlstate or "?"] += 1
            raise Refused(error.sqlstate or "?") from None
        whole, pool = (time.perf_counter() - asked) * 1000, (got - asked) * 1000
        value = row[0] if row else None
        full = bool(value["jobs"]) if isinstance(value, dict) else value is not None
        self.calls.made[name].append(Call(at=asked, full=full, inside_ms=inside_ms, pool_ms=pool, whole_ms=whole))
        return value

    async def _transaction(self, connection: psycopg.AsyncConnection[Any], text: str) -> tuple[tuple[Any, ...] | None, float]:
        try:
            cursor = await connection.execute(text.encode())
            cursor.nextset()
            cursor.nextset()
            row = await cursor.fetchone()
            cursor.nextset()
            inside = await cursor.fetchone()
            return row, inside[0] if inside else 0.0
        except psycopg.Error:
            if not connection.closed:
                await connection.rollback()
            raise
        finally:
            self._free.put_nowait(connection)

    async def _connection(self) -> psycopg.AsyncConnection[Any]:
        try:
            async with asyncio.timeout(ACQUISITION_SECONDS):
                return await self._free.get()
        except TimeoutError:
            self.calls.refused["504"] += 1
            raise Refused("504") from None
