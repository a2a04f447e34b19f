"""Databases of projects old and new, with a schema `private` of their own or without one, each with our migrations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.platform.database import Database, Requests
from tests.platform.server import SUPERUSER, Server, running_server

BOOTSTRAP = sorted((Path(__file__).parent / "sql").glob("*.sql"))
TEMPLATE = "platform"

# What a project's own objects are given by default, for as long as it has existed, or since 30 May 2026.
# https://supabase.com/changelog/45329-breaking-change-tables-not-exposed-to-data-and-graphql-api-automatically
DEFAULTS = {
    "old": "".join(
        f"alter default privileges for role postgres in schema public grant all on {kind} to anon, authenticated, service_role;"
        for kind in ("tables", "sequences", "functions")
    ),
    "new": "alter default privileges for role postgres revoke execute on functions from public;",
}
# A project's own schema of that name, as Supabase's documentation advises to have for helpers of policies, and its own tables.
FOREIGN = """
  create schema private;
  comment on schema private is 'Helpers of our policies.';
  grant usage on schema private to authenticated;
  alter default privileges in schema private grant all on tables to authenticated, service_role;
  alter default privileges in schema private grant execute on functions to authenticated, service_role;
  create table private.teams (id bigint generated always as identity primary key, owner uuid not null);
  create function private.is_member() returns boolean language sql stable security definer set search_path = '' as 'select true';
  create function private.everyone_may() returns integer language sql immutable set search_path = '' as 'select 1';
  grant execute on function private.everyone_may() to public;
  create table public.notes (id bigint generated always as identity primary key, body text);
  create table public.entries (id serial primary key, body text);
  grant select, insert on public.notes, public.entries to authenticated, service_role;
  grant usage on sequence public.entries_id_seq to authenticated, service_role;
  alter table public.notes enable row level security;
  alter table public.entries enable row level security;
  create function public.today() returns date language sql stable set search_path = '' as 'select current_date';
  grant execute on function public.today() to anon;
  create policy "read avatars" on storage.objects for select to anon using (bucket_id = 'avatars');
  insert into storage.buckets (id, name, public) values ('avatars', 'avatars', true);
  alter publication supabase_realtime add table public.notes;
"""
PROJECTS = [(defaults, private) for defaults in DEFAULTS for private in ("own", "foreign")]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as server:
        with psycopg.connect(server.url(SUPERUSER, "postgres"), autocommit=True) as connection:
            connection.execute(f"create database {TEMPLATE}")
        with psycopg.connect(server.url(SUPERUSER, TEMPLATE)) as connection:
            for part in BOOTSTRAP:
                connection.execute(part.read_text())
        yield server


def new_project(server: Server, name: str, *, defaults: str, private: str) -> Database:
    """A project's database before our migrations; `private` is `foreign` where the project has a schema of that name."""
    with psycopg.connect(server.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(f"create database {name} template {TEMPLATE} owner postgres")
    database = Database(server=server, name=name)
    with database.connected(SUPERUSER) as owner:
        owner.execute(DEFAULTS[defaults])
    if private == "foreign":
        database.push(FOREIGN)
    return database


@pytest.fixture(scope="session")
def projects(server: Server) -> dict[tuple[str, str], Database]:
    """Every kind of project, migrated."""
    databases = {}
    for defaults, private in PROJECTS:
        database = new_project(server, f"{defaults}_{private}", defaults=defaults, private=private)
        database.migrate()
        databases[defaults, private] = database
    return databases


@pytest.fixture(params=PROJECTS, ids=lambda project: "{}-defaults-{}-private".format(*project))
def database(request: pytest.FixtureRequest, projects: dict[tuple[str, str], Database]) -> Database:
    return projects[request.param]


@pytest.fixture
def requests(database: Database) -> Iterator[Requests]:
    with database.requests() as requests:
        yield requests
