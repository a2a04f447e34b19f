"""What no waiting will mend ends a worker before it loads its model, and says its mend last; what may pass is waited for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from tests.fault_proxy import FaultProxy
from tests.processes import STUB, SUPERVISED_STUB, WorkerProcess, scratch_supabase

LAST = "20261122000900"
FAULTS = {
    "an older database": (
        f"update supabase_migrations.schema_migrations set version = 'gone' where version = '{LAST}'",
        f"update supabase_migrations.schema_migrations set version = '{LAST}' where version = 'gone'",
        ["it lacks 20261122000900", "supabase db push"],
    ),
    "a bucket that is missing": (
        "update storage.buckets set id = 'gone' where id = 'sdxl_image_high'",
        "update storage.buckets set id = 'sdxl_image_high' where id = 'gone'",
        ["Missing: sdxl_image_high", "supabase db push"],
    ),
    "a bucket that is public": (
        "update storage.buckets set public = true where id = 'sdxl_image_high'",
        "update storage.buckets set public = false where id = 'sdxl_image_high'",
        ["anybody can read their images: sdxl_image_high", "Turn `Public bucket` off"],
    ),
}


@pytest.fixture(scope="module")
def own_supabase() -> Iterator[EmbeddedSupabase]:
    with scratch_supabase() as running:
        yield running


def assert_it_ends(worker: WorkerProcess, words: list[str]) -> None:
    assert worker.wait_for_exit() == 1
    told = [event["event"] for event in worker.events]
    assert "model_loading" not in told
    assert told.count("worker_started") <= 1, "starting again would change nothing"
    for word in words:
        assert word in worker.lines[-1]


@pytest.mark.parametrize("command", [STUB, SUPERVISED_STUB], ids=["alone", "supervised"])
def test_a_rejected_key(own_supabase: EmbeddedSupabase, command: list[str]) -> None:
    with WorkerProcess(own_supabase, command, wait_for_ready=False, supabase_service_role_key="sb_secret_gone") as worker:
        assert_it_ends(worker, ["does not take this key", "are of one project"])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_supabase_that_lacks_something(own_supabase: EmbeddedSupabase, fault: str) -> None:
    plant, undo, words = FAULTS[fault]
    with psycopg.connect(own_supabase.db_url, autocommit=True) as database:
        database.execute(plant.encode())
        try:
            with WorkerProcess(own_supabase, STUB, wait_for_ready=False, worker_id="w") as worker:
                assert_it_ends(worker, words)
        finally:
            database.execute(undo.encode())
        seen = database.execute("select state, error from public.workers where id = 'w'").fetchone()
    assert seen
    assert (seen[0], seen[1].partition(":")[0]) == ("failed", "settings_invalid")
    assert words[0] in seen[1]


def test_a_supabase_that_is_away_is_waited_for(own_supabase: EmbeddedSupabase) -> None:
    with FaultProxy(own_supabase.url) as proxy:
        proxy.cut_off()
        with WorkerProcess(own_supabase, STUB, wait_for_ready=False, supabase_url=proxy.url) as worker:
            worker.wait_for("supabase_not_checked")
            proxy.heal()
            worker.wait_for("worker_ready")


def test_a_wrong_model_path_is_said_before_torch_is_imported() -> None:
    """Which takes seconds. In a Python of its own, where nothing has imported it yet."""
    program = """
import sys
from pathlib import Path
from ourvidz_sdxl.engine import load_engine
try:
    load_engine(Path("/no/such.safetensors"))
except Exception as error:
    print(error.code, "torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told == "model_missing False\n"
