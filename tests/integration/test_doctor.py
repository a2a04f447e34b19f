"""`worker.py doctor` passes where all is well, and else names each fault with its mend."""

import subprocess
import sys

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from tests.processes import environ


def doctor(supabase: EmbeddedSupabase, **settings: object) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "worker.py"), "doctor"]
    done = subprocess.run(command, env=environ(supabase, **settings), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines()


def test_all_is_well(supabase: EmbeddedSupabase) -> None:
    assert doctor(supabase) == (0, ["ok   queue functions", "ok   buckets", "ok   realtime", "ok   model"])


def test_each_fault_comes_with_its_mend(supabase: EmbeddedSupabase) -> None:
    status, lines = doctor(supabase, supabase_service_role_key="sb_secret_wrong", model_path="/no/such.safetensors")
    assert status == 1
    assert [line.split(":")[0] for line in lines] == ["FAIL queue functions", "FAIL buckets", "FAIL realtime", "FAIL model"]
    assert all("Check" in line for line in lines)
