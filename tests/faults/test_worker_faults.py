"""What goes wrong on the worker's own machine: signals, clocks, disks, the model's file, the GPU's memory."""

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from benchmarks.accelerations import random_lora
from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, embedded_supabase
from tests import preloaded
from tests.integration.conftest import Database, User, sign_up, wait_until
from tests.integration.test_proof import WEIGHTS, plant, plant_in_model
from tests.pace import TIMEOUT_SECONDS
from tests.processes import REAL, STUB, TINY_MODEL, WorkerProcess, environ, scratch_folder

TARGET = "own-machine"


def row_of(db: Database, job_id: str) -> dict[str, Any]:
    row = db.execute(
        "select j.*, l.claims, l.crashes from public.jobs j join private.leases l on l.job_id = j.id where j.id = %s", (job_id,)
    ).fetchone()
    assert row
    return row


class TestLeases:
    def test_a_gpu_that_computes_without_pause_starves_no_heartbeat(
        self, supabase: EmbeddedSupabase, db: Database, user: User
    ) -> None:
        with WorkerProcess(supabase, STUB, target_worker=TARGET, lease_seconds=10) as worker:
            job = user.insert(target_worker=TARGET, prompt="busy", steps=2)
            worker.wait_for("job_claimed", job_id=job["id"])
            renewed_twice = "l.expires_at > j.started_at + interval '14 s'"
            wait_until(
                db, f"select {renewed_twice} from public.jobs j join private.leases l on job_id = id where id = %s", job["id"]
            )
            user.client.table("jobs").update({"cancel_requested_at": "now"}).eq("id", job["id"]).execute()
            worker.wait_for("job_cancelled", job_id=job["id"])

    def test_a_clock_of_the_database_that_jumps_ahead_costs_one_attempt_and_nothing_else(
        self, supabase: EmbeddedSupabase, db: Database, user: User
    ) -> None:
        settings: dict[str, Any] = {
            "target_worker": TARGET,
            "lease_seconds": 10,
            "stub_step_seconds": 0.2,
            "poll_interval_connected_seconds": 1,
        }
        with WorkerProcess(supabase, STUB, **settings) as _, WorkerProcess(supabase, STUB, **settings) as _:
            job = user.insert(target_worker=TARGET, steps=100)
            wait_until(db, "select status = 'processing' from public.jobs where id = %s", job["id"])
            # an hour ahead is the same as a lease and a pause that ended an hour ago
            with db.transaction():
                db.execute("update public.jobs set steps = 2")
                db.execute("update private.leases set expires_at = expires_at - interval '1 h'")
            wait_until(db, "select attempts = 1 and status = 'queued' from public.jobs where id = %s", job["id"])
            db.execute("update public.jobs set run_at = now()")
            wait_until(db, "select status = 'completed' from public.jobs where id = %s", job["id"])
        row = row_of(db, job["id"])
        assert (row["attempts"], row["claims"]) == (2, 2)
        assert db.execute("select count(*) from public.job_events where status = 'completed'").fetchone() == {"count": 1}


class TestSignals:
    def test_sigkill_without_a_supervisor_costs_the_lease_and_not_the_job(
        self, supabase: EmbeddedSupabase, db: Database, user: User
    ) -> None:
        with WorkerProcess(supabase, STUB, target_worker=TARGET, stub_step_seconds=0.1) as dead:
            job = user.insert(target_worker=TARGET, steps=100)
            dead.wait_for("job_claimed", job_id=job["id"])
            dead.process.kill()
            dead.wait_for_exit()
        with WorkerProcess(supabase, STUB, target_worker=TARGET, poll_interval_connected_seconds=0.5) as heir:
            assert row_of(db, job["id"])["status"] == "processing", "nobody takes it while the lease holds"
            db.execute("update private.leases set expires_at = now()")
            wait_until(db, "select error_code = 'lease_expired' from public.jobs where id = %s", job["id"])
            db.execute("update public.jobs set run_at = now()")
            heir.wait_for("job_completed", job_id=job["id"])
        assert row_of(db, job["id"])["attempts"] == 2

    def test_a_second_sigterm_ends_the_process_at_once(self, supabase: EmbeddedSupabase, db: Database, user: User) -> None:
        with WorkerProcess(supabase, STUB, target_worker=TARGET, stub_step_seconds=1, shutdown_grace_seconds=60) as worker:
            job = user.insert(target_worker=TARGET, steps=100)
            worker.wait_for("job_claimed", job_id=job["id"])
            worker.process.send_signal(signal.SIGTERM)
            worker.wait_for("worker_draining")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.wait_for_exit() == 128 + signal.SIGTERM


class TestDisks:
    def test_a_log_that_cannot_be_written_stops_nothing(self, supabase: EmbeddedSupabase, db: Database, user: User) -> None:
        with Path("/dev/full").open("w") as full:
            worker = preloaded.Popen(STUB, env=environ(supabase, target_worker=TARGET), cwd=ROOT, stderr=full)
            try:
                job = user.insert(target_worker=TARGET)
                wait_until(db, "select status = 'completed' from public.jobs where id = %s", job["id"])
            finally:
                worker.terminate()
                assert worker.wait(timeout=TIMEOUT_SECONDS) == 0

    def test_a_full_disk_is_none_of_the_workers_business(self, supabase: EmbeddedSupabase, db: Database, user: User) -> None:
        """With a limit of 0 bytes a file, every write to a disk fails as on a full one."""
        with WorkerProcess(supabase, REAL, target_worker=TARGET, wait_for_ready=False) as worker:
            resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (0, 0))  # at once, so that its child has it too
            job = user.insert(target_worker=TARGET, steps=2)
            worker.wait_for("job_completed", job_id=job["id"])


class TestModel:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))

    def run(self, supabase: EmbeddedSupabase, model: Path, **settings: Any) -> WorkerProcess:
        settings |= {"target_worker": TARGET, "model_path": model, "model_retry_seconds": 0.5, "worker_id": "m"}
        return WorkerProcess(supabase, REAL, wait_for_ready=False, **settings)

    @pytest.mark.parametrize("fault", ["missing", "truncated"])
    def test_it_is_loaded_again_and_then_the_error_is_clear_and_nothing_is_claimed(
        self, supabase: EmbeddedSupabase, db: Database, user: User, model: Path, fault: str
    ) -> None:
        weights = next((model / "unet").glob("*.safetensors"))
        if fault == "missing":
            weights.unlink()
        else:
            os.truncate(weights, weights.stat().st_size // 2)
        job = user.insert(target_worker=TARGET)
        with self.run(supabase, model) as worker:
            worker.wait_for("model_not_loaded")
            assert worker.wait_for_exit() == 1
        code = "model_missing" if fault == "missing" else "model_invalid"
        assert f"{code}: " in worker.lines[-1]
        assert [event["event"] for event in worker.events].count("worker_started") == 1, "starting again would change nothing"
        seen = db.execute("select state, error from public.workers where id = 'm'").fetchone()
        assert seen
        assert seen["state"] == "failed"
        assert seen["error"].startswith(code)
        assert (row_of(db, job["id"])["status"], row_of(db, job["id"])["claims"]) == ("queued", 0)

    @pytest.mark.parametrize("part", ["unet", "fast_lora_path"])  # tests/integration/test_proof.py has the others
    def test_a_weight_that_is_no_number_ends_the_worker_before_it_is_ready(
        self, supabase: EmbeddedSupabase, db: Database, user: User, model: Path, part: str
    ) -> None:
        settings: dict[str, Any] = {}
        if part == "fast_lora_path":
            lora = random_lora(model, model.parent / "few.safetensors")
            plant(lora, min(load_file(lora)))
            settings = {part: lora}
        else:
            plant_in_model(model, part)
        job = user.insert(target_worker=TARGET)
        with self.run(supabase, model, **settings) as worker:
            assert worker.wait_for_exit() == 1
        assert "model_invalid: " in worker.lines[-1]
        assert (WEIGHTS[part][1] if part in WEIGHTS else "few") in worker.lines[-1]
        events = [event["event"] for event in worker.events]
        assert "worker_ready" not in events
        assert "worker_died" not in events
        seen = db.execute("select state, error from public.workers where id = 'm'").fetchone()
        assert seen
        assert (seen["state"], seen["error"].partition(":")[0]) == ("failed", "model_invalid")
        assert (row_of(db, job["id"])["status"], row_of(db, job["id"])["claims"]) == ("queued", 0)

    def test_a_model_that_arrives_late_is_loaded(
        self, supabase: EmbeddedSupabase, db: Database, user: User, model: Path, tmp_path: Path
    ) -> None:
        aside = model.rename(tmp_path / "still-copying")
        with self.run(supabase, model) as worker:
            worker.wait_for("model_not_loaded")
            aside.rename(model)
            worker.wait_for("worker_ready")


class TestMemory:
    def test_a_job_too_large_at_once_is_painted_in_small_pieces_and_says_so(
        self, supabase: EmbeddedSupabase, db: Database, user: User
    ) -> None:
        with WorkerProcess(supabase, STUB, target_worker=TARGET) as worker:
            job = user.insert(target_worker=TARGET, prompt="large", batch_size=3)
            worker.wait_for("job_completed", job_id=job["id"])
        row = row_of(db, job["id"])
        assert (row["attempts"], [warning["code"] for warning in row["warnings"]]) == (1, ["low_memory"])
        assert len(user.images(job["id"])) == 3

    def test_a_job_too_large_in_any_case_fails_by_name_and_the_next_one_goes_on(
        self, supabase: EmbeddedSupabase, db: Database, user: User
    ) -> None:
        with WorkerProcess(supabase, STUB, target_worker=TARGET) as worker:
            job, next_job = user.insert(target_worker=TARGET, prompt="raise OutOfMemory"), user.insert(target_worker=TARGET)
            worker.wait_for("job_completed", job_id=next_job["id"])
        row = row_of(db, job["id"])
        assert (row["status"], row["error_code"], row["attempts"]) == ("failed", "out_of_memory", 1)


def test_a_restart_of_postgres_in_the_middle_of_a_job_costs_nothing() -> None:
    with scratch_folder() as folder, embedded_supabase(data_dir=folder) as supabase:
        user = sign_up(supabase)
        with WorkerProcess(supabase, STUB, stub_step_seconds=0.1) as worker:
            job = user.insert(steps=30)
            worker.wait_for("job_claimed", job_id=job["id"])
            postmaster = int((folder / "db" / "postmaster.pid").read_text().split()[0])
            os.kill(postmaster, signal.SIGINT)  # closes every connection and ends; the embedded Supabase starts it again
            worker.wait_for("job_completed", job_id=job["id"])
        row = user.job(job["id"])
        assert (row["status"], row["attempts"]) == ("completed", 1)


class TestRefusals:
    """What the database refuses is not asked again and again as if it would pass by itself."""

    def test_a_worker_whose_rights_come_late_starts_work_without_a_restart(
        self, supabase: EmbeddedSupabase, db: Database, user: User
    ) -> None:
        claim = "public.claim_jobs(text, text, text[], uuid, integer, integer)"
        db.execute(f"revoke execute on function {claim} from service_role")
        try:
            with WorkerProcess(supabase, STUB, target_worker=TARGET, poll_interval_connected_seconds=0.5) as worker:
                assert "permission denied" in worker.wait_for("claim_failed")["reason"]
                db.execute(f"grant execute on function {claim} to service_role")
                worker.wait_for("job_completed", job_id=user.insert(target_worker=TARGET)["id"])
        finally:
            db.execute(f"grant execute on function {claim} to service_role")

    def test_images_that_the_database_does_not_take_end_their_job_by_name(
        self, supabase: EmbeddedSupabase, db: Database, user: User
    ) -> None:
        db.execute("alter table public.job_images add constraint nothing_fits check (bytes < 0)")
        try:
            with WorkerProcess(supabase, STUB, target_worker=TARGET) as worker:
                job = user.insert(target_worker=TARGET)
                worker.wait_for("generation_error", job_id=job["id"])
        finally:
            db.execute("alter table public.job_images drop constraint nothing_fits")
        row = row_of(db, job["id"])
        assert (row["status"], row["error_code"], row["attempts"]) == ("failed", "supabase_refused", 1)
