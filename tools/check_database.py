"""Supabase's own database lints as a gate: `python -m tools.check_database [URL]`, part of `make check`.

Without a URL they run on a scratch embedded Supabase with this checkout's migrations; with one, on that database. The client's
types are held against the scratch one, too, since it runs already. On either, the functions that the database really
has go through the gate of tools.check_sql.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg

from ourvidz_sdxl.local import ROOT, node
from tests.processes import scratch_supabase
from tools import check_sql, database_types

CLI = ROOT / "supabase" / "local" / "node_modules" / ".bin" / "supabase"
TIMEOUT_SECONDS = 60

# The CLI says these for information only; here they count.
GATED = {"unindexed_foreign_keys"}

# Functions that a request through REST may reach, those of Supabase's own services left out.
FUNCTIONS = """
  select p.oid::regprocedure::text, pg_get_functiondef(p.oid)
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
   where p.prokind in ('f', 'p') and n.nspname in ('public', 'private')
     and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
"""

# Lints that the hosted advisor knows and the CLI (3.1.0) does not, in a stricter form of our own: no bucket is public at all.
# Their names and numbers: https://supabase.com/docs/guides/database/database-advisors
OURS = """
  select 'public_bucket_allows_listing' as name, format('Bucket `%s` is public', id) as detail
    from storage.buckets where public
  union all
  select r.rolname || '_security_definer_function_executable',
         format('%s may execute the SECURITY DEFINER function `%s`', r.rolname, p.oid::regprocedure)
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace, pg_roles r
   where p.prosecdef and r.rolname in ('anon', 'authenticated') and has_function_privilege(r.oid, p.oid, 'execute')
     and n.nspname not in ('pg_catalog', 'information_schema', 'auth', 'storage', 'realtime', 'extensions', 'graphql',
                           'graphql_public', 'vault', 'cron', 'net', 'pgbouncer', 'supabase_functions', 'supabase_migrations')
     -- To count what is before one's own job is to count others': it returns one number. lease_facts returns what job_audit shows
     -- of one's own job, and the delete_… delete one's own jobs. The other two return nothing to anybody but operators. REST does
     -- not reach their schema.
     and p.oid <> all (array['private.jobs_ahead(uuid)', 'private.lease_facts(uuid)', 'private.delete_jobs(uuid[])',
                             'private.delete_everything()', 'private.fleet()', 'private.queue_health()']::regprocedure[])
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    lint: str
    detail: str


def advise(url: str) -> list[Finding]:
    """What `supabase db advisors` finds at level warn or above, or by a name in GATED."""
    # always with its target named: without one it would take whatever listens on its default port
    command = [str(CLI), "db", "advisors", "--level", "info", "--fail-on", "none", "--output-format", "json", f"--remote={url}"]
    done = subprocess.run(  # noqa: S603  our own program
        [*command, "--workdir", str(ROOT)],
        env=os.environ | {"PATH": f"{node().parent}:{os.environ['PATH']}", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    results = json.loads(done.stdout)["results"]
    return [
        Finding(lint=found["name"], detail=found["detail"])
        for found in results
        if found["level"] != "INFO" or found["name"] in GATED
    ]


def look(url: str) -> list[Finding]:
    """What the lints of our own find."""
    with psycopg.connect(url) as database:
        ours = [Finding(lint=lint, detail=detail) for lint, detail in database.execute(OURS).fetchall()]
        return ours + [
            Finding(lint="statement_without_where", detail=f"{name}: {found.reason}: {found.statement}")
            for name, definition in database.execute(FUNCTIONS).fetchall()
            for found in check_sql.check(definition)
        ]


def main(arguments: Sequence[str]) -> int:
    """0 or 1. Raises CalledProcessError when the CLI itself fails: a gate that could not be tried is not passed."""
    types_are_current = True
    with ExitStack() as stack:
        if arguments:
            [url] = arguments
        else:
            # as the role that owns the tables, like the hosted advisor
            url = stack.enter_context(scratch_supabase()).db_url.replace("supabase_admin", "postgres")
            types_are_current = database_types.are_current(url)
        found = [*advise(url), *look(url)]
    for finding in found:
        print(f"{finding.lint}: {finding.detail}")
    print(f"database lints: {len(found) or 'no'} findings")
    if not types_are_current:
        print(f"database types: {database_types.TYPES.name} is not what the migrations say; `make types` writes it")
    return 1 if found or not types_are_current else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
