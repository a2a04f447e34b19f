"""The worker, whole: from a user's insert to the picture in the user's hands."""

import hashlib
import signal
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ourvidz_sdxl.local import EmbeddedSupabase
from tests import preloaded
from tests.integration.conftest import Database, User
from tests.processes import REAL, STUB, WorkerProcess, environ


def open_image(user: User, row: dict[str, Any], column: str = "path") -> Image.Image:
    return Image.open(BytesIO(user.client.storage.from_(row["bucket"]).download(row[column])))


def upload_reference(user: User, image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    path = f"{user.id}/reference.png"
    user.client.storage.from_("reference_images").upload(path, buffer.getvalue(), {"content-type": "image/png"})
    return path


def reference_picture() -> Image.Image:
    picture = Image.new("RGB", (256, 256), "white")
    picture.paste("red", (64, 64, 192, 192))
    return picture


def colour_at(image: Image.Image, x: float, y: float) -> Any:
    """Red, green and blue at a share of the width and height."""
    return np.array(image.convert("RGB"))[round(y * (image.height - 1)), round(x * (image.width - 1))].astype(int)


def test_a_prompt_becomes_its_picture(db: Database, user: User, session_worker: WorkerProcess) -> None:
    job = user.insert(job_type="sdxl_image_high", prompt="a red circle on a blue background", seed=3)
    session_worker.wait_for("job_completed", job_id=job["id"])

    row = user.job(job["id"])
    assert (row["status"], row["progress"], row["attempts"], row["error_code"]) == ("completed", 100, 1, None)
    [shown] = user.images(job["id"])
    assert shown["path"] == f"{user.id}/{job['id']}/1-0.png"
    assert (shown["bucket"], shown["seed"], shown["width"], shown["height"]) == ("sdxl_image_high", 3, 128, 128)

    content = user.client.storage.from_(shown["bucket"]).download(shown["path"])
    assert (len(content), hashlib.sha256(content).hexdigest()) == (shown["bytes"], shown["sha256"])
    picture = Image.open(BytesIO(content))
    assert (picture.format, picture.size) == ("PNG", (128, 128))
    red, blue = colour_at(picture, 0.5, 0.5), colour_at(picture, 0.02, 0.02)
    assert red[0] > 150 > red[2], f"the middle should be red, not {red}"
    assert blue[2] > 150 > blue[0], f"the corner should be blue, not {blue}"
    small = open_image(user, shown, "thumbnail_path")
    assert (small.format, max(small.size)) == ("WEBP", 128)


def test_the_row_says_what_really_ran(db: Database, user: User, session_worker: WorkerProcess) -> None:
    job = user.insert(steps=4)
    session_worker.wait_for("job_completed", job_id=job["id"])
    metrics = user.job(job["id"])["metrics"]
    assert metrics["generation_time"] > 0
    assert {key: metrics[key] for key in ("job_type", "batch_size", "i2i_mode", "steps", "guidance_scale", "vram_usage")} == {
        "job_type": "sdxl_image_fast",
        "batch_size": 1,
        "i2i_mode": "none",
        "steps": 4,
        "guidance_scale": 6.0,
        "vram_usage": None,
    }


def test_a_batch_has_its_seeds_in_order_and_differs(db: Database, user: User, session_worker: WorkerProcess) -> None:
    job = user.insert(batch_size=3, seed=40, steps=8, output_format="webp")
    session_worker.wait_for("job_completed", job_id=job["id"])
    images = user.images(job["id"])
    assert [(row["index"], row["seed"], row["mime_type"]) for row in images] == [(i, 40 + i, "image/webp") for i in range(3)]
    assert len({row["sha256"] for row in images}) == 3


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(db: Database, user: User, session_worker: WorkerProcess) -> None:
    alone, batch = user.insert(seed=41, steps=8), user.insert(batch_size=3, seed=40, steps=8)
    for job in (alone, batch):
        session_worker.wait_for("job_completed", job_id=job["id"])
    first = np.array(open_image(user, user.images(alone["id"])[0])).astype(int)
    second = np.array(open_image(user, user.images(batch["id"])[1])).astype(int)
    assert np.abs(first - second).max() <= 2, "a different batch size may change the last bits"


def test_a_reference_is_changed_by_its_strength(db: Database, user: User, session_worker: WorkerProcess) -> None:
    path, distances = upload_reference(user, reference_picture()), {}
    for strength in (1.0, 0.8, 0.2):
        job = user.insert(
            prompt="a green square on a black background", reference_image_path=path, reference_strength=strength, seed=1
        )
        session_worker.wait_for("job_completed", job_id=job["id"])
        picture = open_image(user, user.images(job["id"])[0])
        expected = reference_picture().resize(picture.size, Image.Resampling.LANCZOS)
        distances[strength] = np.abs(np.array(picture).astype(int) - np.array(expected)).mean()
    assert distances[1.0] == 0, "strength 1 returns the reference itself"
    assert distances[1.0] < distances[0.8] < distances[0.2], distances


def test_an_exact_copy_needs_no_prompt(db: Database, user: User, session_worker: WorkerProcess) -> None:
    job = user.insert(prompt="", exact_copy_mode=True, reference_image_path=upload_reference(user, reference_picture()))
    session_worker.wait_for("job_completed", job_id=job["id"])
    [shown] = user.images(job["id"])
    assert shown["similarity_score"] >= 0.95
    assert user.job(job["id"])["metrics"]["i2i_mode"] == "copy"


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), (b"no image at all", "not a PNG")])
def test_a_bad_reference_fails_at_once_in_words(
    db: Database, user: User, session_worker: WorkerProcess, content: bytes | None, message: str
) -> None:
    path = f"{user.id}/bad.png"
    if content:
        user.client.storage.from_("reference_images").upload(path, content, {"content-type": "image/png"})
    job = user.insert(reference_image_path=path, reference_strength=0.5)
    session_worker.wait_for("generation_error", job_id=job["id"])
    row = user.job(job["id"])
    assert (row["status"], row["error_code"], row["attempts"]) == ("failed", "invalid_reference", 1)
    assert message in row["error_message"]
    assert user.images(job["id"]) == []


def test_a_row_that_went_around_the_constraints_is_refused_by_name(db: Database, user: User, session_worker: WorkerProcess) -> None:
    db.execute("alter table public.jobs drop constraint steps_is_from_1_to_100")
    try:
        job = user.insert(steps=101)
        session_worker.wait_for("generation_error", job_id=job["id"])
        row = user.job(job["id"])
        assert (row["error_code"], row["attempts"]) == ("invalid_job", 1)
        assert "steps" in row["error_message"]
    finally:
        db.execute("truncate public.jobs cascade")
        db.execute("alter table public.jobs add constraint steps_is_from_1_to_100 check (steps between 1 and 100)")


def test_the_worker_is_seen(db: Database, session_worker: WorkerProcess) -> None:
    worker_id = session_worker.wait_for("worker_ready")["worker_id"]
    row = db.execute("select state, model, target_worker, version from public.workers where id = %s", (worker_id,)).fetchone()
    assert row == {"state": "ready", "model": "tiny-sdxl", "target_worker": "sdxl", "version": "0.1.0"}


def test_no_prompt_and_no_key_in_the_log(
    supabase: EmbeddedSupabase, db: Database, user: User, session_worker: WorkerProcess
) -> None:
    wish = "wordthatnobodylogs " * 60  # longer than the encoder's 77 tokens
    job = user.insert(prompt=wish, negative_prompt=wish, steps=2)
    session_worker.wait_for("job_completed", job_id=job["id"])
    log = "".join(session_worker.lines)
    assert "wordthatnobodylogs" not in log
    assert supabase.secret_key not in log


def test_a_running_job_is_cancelled_within_a_step(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker="cancelling", stub_step_seconds=0.1) as worker:
        job = user.insert(target_worker="cancelling", steps=100)
        worker.wait_for("job_claimed", job_id=job["id"])
        user.client.table("jobs").update({"cancel_requested_at": "now"}).eq("id", job["id"]).execute()
        worker.wait_for("job_cancelled", job_id=job["id"])
    row = user.job(job["id"])
    assert (row["status"], row["attempts"], row["error_code"]) == ("cancelled", 1, None)
    assert row["completed_at"]


def test_sigterm_gives_back_what_it_cannot_finish_uncharged(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker="stopping", stub_step_seconds=0.1, shutdown_grace_seconds=1) as worker:
        job = user.insert(target_worker="stopping", steps=100)
        worker.wait_for("job_claimed", job_id=job["id"])
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait_for_exit() == 0
    row = user.job(job["id"])
    assert (row["status"], row["attempts"]) == ("queued", 0)


def test_sigterm_lets_a_short_job_finish(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker="draining", stub_step_seconds=0.05, shutdown_grace_seconds=20) as worker:
        jobs = [user.insert(target_worker="draining", steps=20) for _ in range(3)]
        worker.wait_for("job_claimed", job_id=jobs[0]["id"])
        worker.wait_for("job_claimed", job_id=jobs[1]["id"])
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait_for_exit() == 0
    assert [user.job(job["id"])["status"] for job in jobs] == ["completed", "completed", "queued"], "no new claims while draining"


def test_without_realtime_the_timer_gets_the_job_done(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker="timer", poll_interval_connected_seconds=0.5) as worker:
        db.execute("alter function realtime.send(jsonb, text, text, boolean) rename to send_away")
        try:
            job = user.insert(target_worker="timer")
            worker.wait_for("job_completed", job_id=job["id"])
        finally:
            db.execute("alter function realtime.send_away(jsonb, text, text, boolean) rename to send")


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"model_path": "/no/such/model.safetensors"}, "model_missing: "), ({"lease_seconds": "soon"}, "settings_invalid: ")],
)
def test_what_is_set_wrong_ends_with_status_1_and_words(supabase: EmbeddedSupabase, settings: dict[str, str], told: str) -> None:
    done = preloaded.run(REAL, env=environ(supabase, **settings))
    assert done.returncode == 1
    assert told in done.stderr
