"""The real Supabase CLI takes the same folder and the same config.toml, against the embedded database as against any other."""

import os
import subprocess

import pytest

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, node


def run_cli(supabase: EmbeddedSupabase, *arguments: str) -> str:
    """Always with its target named: without one it would take whatever listens on its default port."""
    as_postgres = supabase.db_url.replace("supabase_admin", "postgres")
    done = subprocess.run(
        [ROOT / "supabase/local/node_modules/.bin/supabase", *arguments, f"--remote={as_postgres}", "--workdir", ROOT],
        env=os.environ | {"PATH": f"{node().parent}:{os.environ['PATH']}", "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        timeout=60,
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
