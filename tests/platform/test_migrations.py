"""The migrations apply to a hosted project as the role postgres, of whatever age, and touch nothing that was there before."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from tests.platform.conftest import PROJECTS, new_project
from tests.platform.database import Database, RequiresWhere
from tests.platform.server import SUPERUSER, Server
from tools import check_database

Projects = dict[tuple[str, str], Database]

ROLES = ["anon", "authenticated", "service_role", "authenticator", "supabase_read_only_user", "dashboard_user"]
# Everything of the schemas public and private, less what the project brought along.
OURS = """
  with relations as (
    select c.oid, c.oid::regclass::text as name, c.relkind from pg_class c
     where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind in ('r', 'v', 'S')),
  functions as (
    select p.oid, p.oid::regprocedure::text as name from pg_proc p
     where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)),
  rights as (
    select r.name, role, 'table' as kind, p as privilege, has_table_privilege(role, r.oid, p) as held
      from relations r, unnest(%(roles)s::text[]) role,
           unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p
     where r.relkind <> 'S'
    union all
    select r.name || '.' || a.attname, role, 'column', p, has_column_privilege(role, r.oid, a.attnum, p)
      from relations r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped,
           unnest(%(roles)s::text[]) role, unnest(array['select', 'insert', 'update']) p
     where r.relkind <> 'S'
    union all
    select r.name, role, 'sequence', p, has_sequence_privilege(role, r.oid, p)
      from relations r, unnest(%(roles)s::text[]) role, unnest(array['usage', 'select', 'update']) p where r.relkind = 'S'
    union all
    select f.name, role, 'function', 'execute', has_function_privilege(role, f.oid, 'execute')
      from functions f, unnest(%(roles)s::text[]) role)
  select kind, name, role, privilege from rights where held
"""
# What a project had: owners, grants, comments, policies, members of the publication.
STATE = """
  with schemas as (
    select oid, nspname, nspowner, nspacl from pg_namespace where nspname in ('public', 'private', 'storage', 'realtime', 'auth'))
  select 'relation ' || c.oid::regclass as object, array[c.relowner::text, c.relacl::text, c.relrowsecurity::text] as state
    from pg_class c join schemas s on s.oid = c.relnamespace where c.relkind <> 'i'
  union all
  select 'function ' || p.oid::regprocedure, array[p.proowner::text, p.proacl::text, p.prosecdef::text]
    from pg_proc p join schemas s on s.oid = p.pronamespace
  union all
  select 'schema ' || s.nspname, array[s.nspowner::text, obj_description(s.oid)] from schemas s
  union all
  select format('grant on schema %%s to %%s', s.nspname, a.grantee::regrole), array[a.privilege_type]
    from schemas s, aclexplode(s.nspacl) a where s.nspname = 'private'
  union all
  select format('policy %%s on %%s', p.polname, p.polrelid::regclass), array[p.polcmd::text, pg_get_expr(p.polqual, p.polrelid)]
    from pg_policy p
  union all
  select format('publication %%s: %%s.%%s', pubname, schemaname, tablename), '{}' from pg_publication_tables
  union all
  select 'bucket ' || id, array[public::text, file_size_limit::text, allowed_mime_types::text] from storage.buckets
  union all
  select format('default privileges of %%s in %%s for %%s', d.defaclrole, d.defaclnamespace, d.defaclobjtype),
         array[d.defaclacl::text] from pg_default_acl d
"""


def rights(database: Database) -> set[tuple[str, ...]]:
    with database.connected(SUPERUSER) as owner:
        return {tuple(row.values()) for row in owner.execute(OURS, {"roles": ROLES}).fetchall()}


def state(database: Database) -> dict[str, list[str | None]]:
    with database.connected(SUPERUSER) as owner:
        return {row["object"]: row["state"] for row in owner.execute(STATE, {}).fetchall()}


class TestThePlatformItself:
    """Is as strict as the hosted one where migrations and requests would notice."""

    @pytest.mark.parametrize(
        "statement",
        [
            "create policy planted on storage.objects for select to anon using (true)",
            "alter table storage.objects disable row level security",
            "alter table realtime.messages add column planted text",
            "create table realtime.planted ()",
            "create table storage.planted ()",
            "set role supabase_storage_admin",
            "delete from storage.objects where bucket_id = 'planted'",
            "create extension plpython3u",
        ],
    )
    def test_postgres_may_not(self, database: Database, statement: str) -> None:
        with database.connected("postgres") as postgres, pytest.raises(psycopg.errors.InsufficientPrivilege):
            postgres.execute(statement)

    def test_postgres_is_a_member_of_no_admin_role(self, database: Database) -> None:
        with database.connected("postgres") as postgres:
            admins = "select rolname from pg_roles where rolname ~ '_admin$' and pg_has_role(rolname, 'member')"
            assert postgres.execute(admins).fetchall() == []

    @pytest.mark.parametrize(
        "body",
        [
            "begin update private.planted set a = 1; end",
            "begin execute 'dele' || 'te from private.planted'; end",  # no check of the text finds it
            "begin with gone as (delete from private.planted returning a) insert into private.planted select a from gone; end",
        ],
    )
    def test_a_request_that_updates_or_deletes_without_where_is_refused(self, database: Database, body: str) -> None:
        with database.connected("postgres") as postgres:
            postgres.execute("create table private.planted (a integer)")
            postgres.execute(f"create function public.planted() returns void language plpgsql security definer as $$ {body} $$")
            postgres.execute("grant execute on function public.planted() to service_role")
            try:
                with database.requests() as requests, pytest.raises(RequiresWhere):
                    requests.ask("service_role", "select public.planted()")
            finally:
                postgres.execute("drop function public.planted(); drop table private.planted")


def test_every_object_of_ours_belongs_to_postgres(database: Database) -> None:
    with database.connected("postgres") as postgres:
        others = postgres.execute("""
          select oid::regclass::text from pg_class where relnamespace::regnamespace::text in ('public', 'private')
             and relowner <> 'postgres'::regrole
          union all
          select oid::regprocedure::text from pg_proc where pronamespace::regnamespace::text in ('public', 'private')
             and proowner <> 'postgres'::regrole""").fetchall()
    assert others == []


def test_no_extension_lies_in_public(database: Database) -> None:
    with database.connected("postgres") as postgres:
        rows = postgres.execute("select extname, extnamespace::regnamespace::text as schema from pg_extension").fetchall()
    schemas = {row["extname"]: row["schema"] for row in rows}
    assert schemas["pg_net"] == "extensions"
    assert schemas["pg_cron"] == "pg_catalog"
    assert "public" not in schemas.values()


def test_the_same_rights_whatever_a_project_grants_by_default(projects: Projects) -> None:
    expected = rights(projects["new", "own"])
    assert ("function", "claim_jobs(text,text,text[],uuid,integer,integer)", "service_role", "execute") in expected
    for project, database in projects.items():
        brought = {
            "notes",
            "entries",
            "today",
            "teams",
            "is_member",
            "everyone_may",
            "notes_id_seq",
            "entries_id_seq",
            "teams_id_seq",
        }
        ours = {right for right in rights(database) if not brought & set(right[1].replace("(", ".").split("."))}
        assert ours == expected, project


@pytest.fixture(scope="module")
def project(server: Server) -> Database:
    return new_project(server, "before_and_after", defaults="old", private="foreign")


def test_what_a_project_had_is_as_it_was(project: Database) -> None:
    before = state(project)
    assert "relation private.teams" in before
    project.migrate()
    after = state(project)
    assert {name: after.get(name) for name in before} == before


def test_a_project_that_publishes_all_of_its_tables(server: Server) -> None:
    project = new_project(server, "publishes_all", defaults="old", private="own")
    with project.connected(SUPERUSER) as owner:
        owner.execute("drop publication supabase_realtime")
        owner.execute("create publication supabase_realtime for all tables")
    project.migrate()
    with project.connected("postgres") as postgres:
        published = (
            "select tablename from pg_publication_tables where schemaname = 'public' and tablename in ('jobs', 'job_images')"
        )
        assert len(postgres.execute(published).fetchall()) == 2


@pytest.mark.parametrize(("defaults", "private"), PROJECTS)
def test_the_advisor_has_nothing_to_say_of_ours(projects: Projects, defaults: str, private: str) -> None:
    """Supabase's own lints, by its own command-line tool."""
    url = projects[defaults, private].server.url("postgres", projects[defaults, private].name)
    try:
        found = [*check_database.advise(url), *check_database.look(url)]
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr) from error
    brought = ("public.notes", "public.entries", "private.teams", "everyone_may", "is_member", "avatars", "today")
    assert [finding for finding in found if not any(name in finding.detail for name in brought)] == []
    assert private == "foreign" or found == []
