"""The real Supabase CLI takes the same folder and the same config.toml, against the embedded database as against any other."""

import os
import subprocess
from collections.abc import Iterator

import psycopg
import pytest

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, node
from tests.pace import TIMEOUT_SECONDS
from tests.processes import scratch_supabase
from tools import check_database


def as_postgres(supabase: EmbeddedSupabase) -> str:
    return supabase.db_url.replace("supabase_admin", "postgres")


def run_cli(supabase: EmbeddedSupabase, *arguments: str) -> str:
    """Always with its target named: without one it would take whatever listens on its default port."""
    done = subprocess.run(
        [check_database.CLI, *arguments, f"--remote={as_postgres(supabase)}", "--workdir", ROOT],
        env=os.environ | {"PATH": f"{node().parent}:{os.environ['PATH']}", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("migration", "list"), "20261122000100"),
        (("db", "push", "--dry-run"), "Remote database is up to date"),
        (("db", "advisors", "--fail-on", "warn"), ""),
    ],
    ids=" ".join,
)
def test_it_works_with_the_embedded_database(supabase: EmbeddedSupabase, arguments: tuple[str, ...], told: str) -> None:
    assert told in run_cli(supabase, *arguments)


# The gate: `make check` fails on a fault of each kind that it is there for, by the name of Supabase's lint


@pytest.fixture(scope="module")
def scratch() -> Iterator[EmbeddedSupabase]:
    with scratch_supabase() as running:
        yield running


def test_our_migrations_pass(scratch: EmbeddedSupabase, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_database.main([as_postgres(scratch)]) == 0
    assert capsys.readouterr().out == "database lints: no findings\n"


@pytest.mark.parametrize(
    ("lint", "fault", "mended"),
    [
        (
            "unindexed_foreign_keys",  # 0001
            "create table private.planted (id int primary key, job_id uuid references public.jobs (id))",
            "drop table private.planted",
        ),
        (
            "auth_rls_initplan",  # 0003
            "create policy planted on public.workers for select to authenticated using (id = auth.uid()::text)",
            "drop policy planted on public.workers",
        ),
        (
            "multiple_permissive_policies",  # 0006
            "create policy planted on public.jobs for select to authenticated using (prompt = '')",
            "drop policy planted on public.jobs",
        ),
        (
            "policy_exists_rls_disabled",  # 0007
            "alter table public.jobs disable row level security",
            "alter table public.jobs enable row level security",
        ),
        (
            "security_definer_view",  # 0010
            "create view public.planted as select id from public.jobs",
            "drop view public.planted",
        ),
        (
            "function_search_path_mutable",  # 0011
            "create function public.planted() returns int language sql as 'select 1'",
            "drop function public.planted()",
        ),
        (
            "rls_disabled_in_public",  # 0013
            "create table public.planted (id int primary key)",
            "drop table public.planted",
        ),
        (
            "sensitive_columns_exposed",  # 0023
            "create table public.planted (id int primary key, password text)",
            "drop table public.planted",
        ),
        (
            "rls_policy_always_true",  # 0024
            "create policy planted on public.workers for insert to authenticated with check (true)",
            "drop policy planted on public.workers",
        ),
        (
            "public_bucket_allows_listing",  # 0025
            "update storage.buckets set public = true where id = 'reference_images'",
            "update storage.buckets set public = false",
        ),
        (
            "anon_security_definer_function_executable",  # 0028
            "grant execute on function private.jobs_wake() to anon",
            "revoke execute on function private.jobs_wake() from anon",
        ),
        (
            "authenticated_security_definer_function_executable",  # 0029
            "create function public.planted() returns int language sql security definer set search_path = '' as 'select 1'",
            "drop function public.planted()",
        ),
    ],
)
def test_a_fault_is_found(
    scratch: EmbeddedSupabase, lint: str, fault: str, mended: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(as_postgres(scratch), autocommit=True) as migration:
        migration.execute(fault)
        try:
            assert check_database.main([as_postgres(scratch)]) == 1
        finally:
            migration.execute(mended)
    assert f"\n{lint}: " in "\n" + capsys.readouterr().out


def test_a_database_that_cannot_be_asked_does_not_pass() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        check_database.main(["postgresql://postgres:x@127.0.0.1:1/postgres"])
