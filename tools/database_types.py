"""The database's types for TypeScript, by Supabase's own generator: `python -m tools.database_types` writes them (`make types`).

`make check` compares them with the migrations (tools/check_database.py), so that the client cannot fall behind the tables.
"""

from __future__ import annotations

import os
import subprocess
import sys

from ourvidz_sdxl.local import ROOT, node
from tests.processes import scratch_supabase

CLI = ROOT / "supabase" / "local" / "node_modules" / ".bin" / "supabase"
BIOME = ROOT / "studio" / "node_modules" / ".bin" / "biome"
STUDIO = ROOT / "studio"
TYPES = STUDIO / "packages" / "client" / "src" / "database.types.ts"
TIMEOUT_SECONDS = 60

HEADER = "// The tables as they are in supabase/migrations. Written by `make types`; `make check` says when it is old.\n\n"


def generate(url: str) -> str:
    """What `supabase gen types` makes of that database's public schema, formatted. Raises CalledProcessError when it cannot."""
    # always with its target named: without one it would take whatever listens on its default port
    made = run([str(CLI), "gen", "types", "--lang", "typescript", "--schema", "public", f"--remote={url}", "--workdir", str(ROOT)])
    made = made[made.index("export type Json") :]  # it says on standard output, too, how it is connected
    # under another name, since biome.json passes over the file itself
    return run([str(BIOME), "format", "--stdin-file-path=made.ts", f"--config-path={STUDIO}"], HEADER + made)


def are_current(url: str) -> bool:
    return TYPES.exists() and TYPES.read_text() == generate(url)


def run(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(  # noqa: S603  our own programs
        command,
        env=os.environ | {"PATH": f"{node().parent}:{os.environ['PATH']}", "DO_NOT_TRACK": "1"},
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    with scratch_supabase() as supabase:
        TYPES.write_text(generate(supabase.db_url.replace("supabase_admin", "postgres")))
