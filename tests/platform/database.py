"""A project's database: migrations applied as the platform lets them, and requests as its REST server makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
from pglast import ast, enums, parse_sql
from psycopg.rows import DictRow, dict_row

from ourvidz_sdxl.local import ROOT
from tests.platform.server import SUPERUSER, Server
from tools import check_sql

MIGRATIONS = sorted((ROOT / "supabase" / "migrations").glob("*.sql"))
# The platform's event hooks (supautils) let postgres write policies on these tables of others.
POLICY_GRANTS = {"auth.users", "realtime.messages", "storage.buckets", "storage.objects"}


class RequiresWhere(psycopg.errors.CardinalityViolation):
    """pg-safeupdate's refusal, SQLSTATE 21000."""


@dataclass(frozen=True, kw_only=True)
class Database:
    server: Server
    name: str

    @contextmanager
    def connected(self, role: str) -> Iterator[psycopg.Connection[DictRow]]:
        url = self.server.url(role, self.name)
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
            yield connection

    def migrate(self) -> None:
        for migration in MIGRATIONS:
            self.push(migration.read_text())

    def push(self, text: str) -> None:
        """Executes a migration as the role postgres, in one transaction."""
        with self.connected(SUPERUSER) as connection, connection.transaction():
            connection.execute("set local session authorization postgres")
            for raw in parse_sql(text):
                start, length = raw.stmt_location or 0, raw.stmt_len
                is_elevated = _table_of_policy(raw.stmt) in POLICY_GRANTS
                if is_elevated:
                    connection.execute("set local session authorization default")
                connection.execute(text[start : start + length if length else None])
                if is_elevated:
                    connection.execute("set local session authorization postgres")

    @contextmanager
    def requests(self) -> Iterator[Requests]:
        with self.connected("authenticator") as connection:
            yield Requests(connection)

    def sign_up(self) -> str:
        with self.connected("supabase_auth_admin") as auth:
            user_id = str(uuid4())
            auth.execute("insert into auth.users (id, aud, role) values (%s, 'authenticated', 'authenticated')", (user_id,))
            return user_id


def _table_of_policy(statement: Any) -> str | None:
    kind = type(statement)
    if kind in (ast.CreatePolicyStmt, ast.AlterPolicyStmt):
        return f"{statement.table.schemaname}.{statement.table.relname}"
    if kind is ast.DropStmt and statement.removeType == enums.ObjectType.OBJECT_POLICY:
        return ".".join(name.sval for name in statement.objects[0][:2])
    return None


class Requests:
    """Requests on a connection of the REST server's: a transaction each, under a role and its claims.

    The server reports every statement that it executed, those of functions and triggers too. One that pg-safeupdate
    would have refused raises RequiresWhere; what it did is then committed already, which no test relies on.
    """

    def __init__(self, connection: psycopg.Connection[DictRow]) -> None:
        self._connection = connection
        self.executed: list[str] = []
        connection.add_notice_handler(self._hear)

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        _, plan, report = (notice.message_primary or "").partition("plan:\n")
        if plan:
            self.executed.append(json.loads(report)["Query Text"])

    def ask(
        self,
        role: str,
        statement: str,
        values: Sequence[Any] = (),
        *,
        user: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> list[DictRow]:
        """Rows of the answer. `user` is the id in the token's claims, `settings` what a server of the platform sets beside them."""
        self.executed.clear()
        claims = {"role": role} | ({"sub": user} if user else {})
        with self._connection.transaction():
            for name, value in {"role": role, "request.jwt.claims": json.dumps(claims), **(settings or {})}.items():
                self._connection.execute("select set_config(%s, %s, true)", (name, value))
            cursor = self._connection.execute(statement, values)
            rows = cursor.fetchall() if cursor.description else []
        for text in self.executed:
            for found in check_sql.check(text):
                if found.reason.endswith("without WHERE"):
                    raise RequiresWhere(found.statement)
        return rows
