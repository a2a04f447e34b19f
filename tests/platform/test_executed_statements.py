"""No UPDATE or DELETE without WHERE is executed for the doctor, a worker or a browser; pg-safeupdate would refuse it.

auto_explain writes every executed statement of the embedded Supabase into the server's log, those of functions and triggers too.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import psycopg

from ourvidz_sdxl.local import ROOT, embedded_supabase
from tests import preloaded
from tests.integration.conftest import sign_up
from tests.processes import STUB, WorkerProcess, environ, scratch_folder
from tools import check_sql

REPORT_EVERYTHING = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
}
PLAN = re.compile(r"plan:\n((?:\t.*\n)+)")


def executed(log: Path) -> set[str]:
    """The text of every statement that auto_explain reported; a function in SQL is one text."""
    return {json.loads(plan.replace("\n\t", "\n"))["Query Text"] for plan in PLAN.findall(log.read_text())}


def test_none_is_executed() -> None:
    with scratch_folder() as folder:
        with embedded_supabase(data_dir=folder) as supabase, psycopg.connect(supabase.db_url, autocommit=True) as owner:
            for name, value in REPORT_EVERYTHING.items():
                owner.execute(f"alter database postgres set {name} = '{value}'")
        with embedded_supabase(data_dir=folder) as supabase:
            doctor = [sys.executable, str(ROOT / "worker.py"), "doctor"]
            done = preloaded.run(doctor, env=environ(supabase))
            assert done.returncode == 0, done.stdout
            user = sign_up(supabase)
            with WorkerProcess(supabase, STUB) as worker:
                user.insert(prompt="a cat")
                worker.wait_for("job_completed")
                failing = user.insert(prompt="raise")
                worker.wait_for("generation_error", job_id=failing["id"])
        texts = executed(folder / "postgres.log")
    assert [text for text in texts if "insert into public.job_images" in text], "statements within functions are reported"
    found = [str(finding) for text in texts for finding in check_sql.check(text) if finding.reason.endswith("without WHERE")]
    assert found == []
