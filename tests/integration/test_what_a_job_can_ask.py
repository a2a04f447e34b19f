"""What a job can ask for beyond a prompt, each through the database, the worker and back."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ourvidz_sdxl.job import Fit, Scheduler
from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.reference import INCOMPLETE, decode_reference, fit_reference
from tests.integration.conftest import Database, User
from tests.integration.test_worker import open_image, reference_picture, upload_reference
from tests.processes import STUB, WorkerProcess

REFERENCES = Path(__file__).parents[1] / "cases" / "references"


@pytest.mark.parametrize("scheduler", Scheduler)
def test_each_scheduler_paints(db: Database, user: User, session_worker: WorkerProcess, scheduler: Scheduler) -> None:
    job = user.insert(scheduler=scheduler, seed=3, steps=20)
    session_worker.wait_for("job_completed", job_id=job["id"])
    [shown] = user.images(job["id"])
    picture = open_image(user, shown)
    assert f"Sampler: {scheduler}" in picture.info["parameters"]
    red, green, blue = picture.convert("RGB").getpixel((2, 2))  # type: ignore[misc]
    assert blue > max(red, green) + 60, "the background should be blue"


def test_long_and_weighted_prompts(db: Database, user: User, session_worker: WorkerProcess) -> None:
    jobs = [
        user.insert(prompt=prompt, steps=8)
        for prompt in ("a red circle, " * 60, "a ((red:1.2):1.1) circle \\(round\\) on a (blue:0.8) background")
    ]
    for job in jobs:
        session_worker.wait_for("job_completed", job_id=job["id"])


def test_a_file_tells_how_it_was_made_unless_its_job_is_private(db: Database, user: User, session_worker: WorkerProcess) -> None:
    told, private = user.insert(seed=5, steps=2), user.insert(seed=5, steps=2, metadata={"private_metadata": True})
    for job in (told, private):
        session_worker.wait_for("job_completed", job_id=job["id"])
    chunks = open_image(user, user.images(told["id"])[0]).info
    assert chunks["parameters"].startswith(
        "a red circle on a blue background\nSteps: 2, Sampler: default, CFG scale: 6.0, Seed: 5, "
    )
    assert json.loads(chunks["ourvidz"])["Seed"] == 5
    assert not {"parameters", "ourvidz"} & open_image(user, user.images(private["id"])[0]).info.keys()


def test_the_size_follows_the_reference_and_fit_is_respected(db: Database, user: User, session_worker: WorkerProcess) -> None:
    path = upload_reference(user, reference_picture().resize((400, 200)))
    copy = {"prompt": "", "exact_copy_mode": True, "reference_image_path": path, "reference_strength": 0.0}
    free = user.insert(**copy)
    contained = user.insert(**copy, width=128, height=128, metadata={"fit": "contain"})
    for job in (free, contained):
        session_worker.wait_for("job_completed", job_id=job["id"])
    [shown] = user.images(free["id"])
    assert (shown["width"], shown["height"], shown["similarity_score"]) == (184, 88, 1)
    assert open_image(user, user.images(contained["id"])[0]).convert("RGB").getpixel((64, 10)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("name", "fit", "warnings"),
    [
        ("gray16.png", "cover", []),
        ("icc_adobe_rgb.png", "cover", []),
        ("icc_display_p3.png", "cover", []),
        ("icc_2mb.png", "cover", ["reference_colours"]),
        ("itxt_2mb.png", "cover", []),
        ("bad_crc_anc.png", "cover", []),
        ("exif_bad_rational.jpg", "cover", []),
        ("trunc.jpg", "cover", ["reference_truncated"]),
        ("narrow_1x5000.png", "contain", []),
    ],
)
def test_pictures_that_other_programs_write_are_references(
    db: Database, user: User, session_worker: WorkerProcess, name: str, fit: str, warnings: list[str]
) -> None:
    """Copied without noise, each comes back as it is decoded."""
    content, path = (REFERENCES / name).read_bytes(), f"{user.id}/{name}"
    kind = "image/jpeg" if name.endswith("jpg") else "image/png"
    user.client.storage.from_("reference_images").upload(path, content, {"content-type": kind})
    copy = {"prompt": "", "exact_copy_mode": True, "reference_strength": 0.0, "width": 128, "height": 128}
    job = user.insert(**copy, reference_image_path=path, metadata={"fit": fit})
    session_worker.wait_for("job_completed", job_id=job["id"])
    assert [warning["code"] for warning in user.job(job["id"])["warnings"]] == warnings
    shown = np.asarray(open_image(user, user.images(job["id"])[0]).convert("RGB"))
    expected = np.asarray(fit_reference(decode_reference(content), 128, 128, Fit(fit)))
    assert np.array_equal(shown, expected)
    assert (shown != 255).any()


def test_a_reference_that_cannot_be_read_fails_its_job_and_says_why(
    db: Database, user: User, session_worker: WorkerProcess
) -> None:
    content, path = (REFERENCES / "gray16.png").read_bytes()[:300], f"{user.id}/half.png"
    user.client.storage.from_("reference_images").upload(path, content, {"content-type": "image/png"})
    job = user.insert(reference_image_path=path, reference_strength=0.5)
    session_worker.wait_for("generation_error", job_id=job["id"])
    row = user.job(job["id"])
    assert (row["status"], row["error_code"], row["error_message"]) == ("failed", "invalid_reference", INCOMPLETE)


def test_an_earlier_image_of_ones_own_is_a_reference_too(db: Database, user: User, session_worker: WorkerProcess) -> None:
    first = user.insert(steps=8)
    session_worker.wait_for("job_completed", job_id=first["id"])
    [image] = user.images(first["id"])
    again = user.insert(exact_copy_mode=True, prompt="", reference_image_path=f"{image['bucket']}/{image['path']}")
    session_worker.wait_for("job_completed", job_id=again["id"])
    assert user.images(again["id"])[0]["similarity_score"] >= 0.95


def test_the_operators_negative_preset_comes_first(db: Database, user: User, session_worker: WorkerProcess) -> None:
    db.execute("update public.negative_presets set negative_prompt = 'blur' where job_type = 'sdxl_image_fast'")
    try:
        job = user.insert(negative_prompt="a green circle", steps=2)
        session_worker.wait_for("job_completed", job_id=job["id"])
        words = open_image(user, user.images(job["id"])[0]).info["parameters"]
        assert "\nNegative prompt: blur, a green circle\n" in words
    finally:
        db.execute("update public.negative_presets set negative_prompt = ''")


def test_a_url_that_leads_home_is_refused(db: Database, user: User, session_worker: WorkerProcess) -> None:
    job = user.insert(reference_image_url="https://127.0.0.1/cat.png", reference_strength=0.5)
    session_worker.wait_for("generation_error", job_id=job["id"])
    row = user.job(job["id"])
    assert (row["status"], row["error_code"], row["attempts"]) == ("failed", "invalid_reference", 1)
    assert "public server" in row["error_message"]


def test_a_reference_is_dropped_only_when_asked_and_then_said(db: Database, user: User, session_worker: WorkerProcess) -> None:
    job = user.insert(reference_image_path=f"{user.id}/gone.png", reference_strength=0.5, fallback_to_text=True, steps=2)
    session_worker.wait_for("job_completed", job_id=job["id"])
    row = user.job(job["id"])
    assert [warning["code"] for warning in row["warnings"]] == ["reference_dropped"]
    assert "does not exist" in row["warnings"][0]["message"]
    assert row["metrics"]["i2i_mode"] == "none"


def test_what_is_not_allowed_is_refused_before_the_gpu_and_leaves_a_trace(
    db: Database, user: User, session_worker: WorkerProcess
) -> None:
    job = user.insert(prompt="a nude woman")
    session_worker.wait_for("generation_error", job_id=job["id"])
    row = user.job(job["id"])
    assert (row["status"], row["error_code"], row["attempts"]) == ("failed", "content_refused", 1)
    assert "nude" not in row["error_message"]
    assert user.images(job["id"]) == []
    events = user.client.table("job_events").select("error_code").eq("job_id", job["id"]).order("id").execute().data
    assert events[-1] == {"error_code": "content_refused"}


class NobodyPasses:
    """An image check for the next test."""

    def allowed(self, _image: Any) -> bool:
        return False


def test_a_picture_that_the_image_check_refuses_is_never_stored(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    check = f"{__name__}.{NobodyPasses.__name__}"
    with WorkerProcess(supabase, STUB, target_worker="checked", image_check=check) as worker:
        job = user.insert(target_worker="checked")
        worker.wait_for("generation_error", job_id=job["id"])
    assert user.job(job["id"])["error_code"] == "content_refused"
    count = db.execute("select count(*) from storage.objects where name like %s", (f"%{job['id']}%",)).fetchone()
    assert count == {"count": 0}


@pytest.fixture
def completions() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible server on loopback that adds a few words to the prompt, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = json.dumps({"choices": [{"text": " a red circle on a blue background, soft light\n", "index": 0}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def test_a_prompt_is_enhanced_when_its_job_says_so(
    supabase: EmbeddedSupabase, db: Database, user: User, completions: tuple[str, list[dict[str, Any]]]
) -> None:
    url, asked = completions
    path = upload_reference(user, reference_picture())
    with WorkerProcess(supabase, STUB, target_worker="enhanced", enhancer="http", enhancer_url=url) as worker:
        wanted = user.insert(target_worker="enhanced", enhance_prompt=True)
        unwanted = user.insert(target_worker="enhanced")
        copy = user.insert(target_worker="enhanced", enhance_prompt=True, exact_copy_mode=True, reference_image_path=path)
        for job in (wanted, unwanted, copy):
            worker.wait_for("job_completed", job_id=job["id"])
    row = user.job(wanted["id"])
    assert row["prompt"] == "a red circle on a blue background"
    assert row["enhanced_prompt"] == "a red circle on a blue background, soft light"
    assert [user.job(job["id"])["enhanced_prompt"] for job in (unwanted, copy)] == [None, None]
    assert len(asked) == 1


def test_without_its_enhancer_a_job_goes_on_with_its_own_prompt_and_says_so(
    supabase: EmbeddedSupabase, db: Database, user: User
) -> None:
    with WorkerProcess(supabase, STUB, target_worker="alone", enhancer="http", enhancer_url="http://127.0.0.1:9/v1") as worker:
        job = user.insert(target_worker="alone", enhance_prompt=True)
        worker.wait_for("job_completed", job_id=job["id"])
    row = user.job(job["id"])
    assert ([warning["code"] for warning in row["warnings"]], row["enhanced_prompt"]) == (["not_enhanced"], None)


@pytest.mark.parametrize(
    ("error", "status", "attempts", "code", "message"),
    [
        ("BlankImage", "queued", 0, "blank_image", "another seed"),
        ("ModelInvalid", "failed", 1, "model_invalid", "cannot be used"),
        ("OutOfMemory", "failed", 1, "out_of_memory", "too little memory"),
        ("UploadFailed", "queued", 1, "upload_failed", "could not be stored"),
        ("SupabaseUnavailable", "queued", 1, "supabase_unavailable", "did not answer"),
        ("ValueError", "failed", 1, "invalid_job", "cannot be painted"),
        ("UploadRefused", "failed", 1, "upload_refused", "could not be stored"),
        ("", "queued", 0, "unknown_error", "Unknown error occurred"),
    ],
)
@pytest.mark.usefixtures("long_pauses")
def test_each_fault_has_its_code_in_the_row(
    supabase: EmbeddedSupabase,
    db: Database,
    user: User,
    stub_worker: WorkerProcess,
    error: str,
    status: str,
    attempts: int,
    code: str,
    message: str,
) -> None:
    job = user.insert(target_worker="faulty", prompt=f"raise {error}")
    stub_worker.wait_for("generation_error", job_id=job["id"])
    row = user.job(job["id"])
    assert (row["status"], row["attempts"], row["error_code"]) == (status, attempts, code)
    assert message in row["error_message"]


@pytest.fixture(scope="module")
def stub_worker(supabase: EmbeddedSupabase) -> Iterator[WorkerProcess]:
    with WorkerProcess(supabase, STUB, target_worker="faulty") as running:
        yield running


@pytest.mark.usefixtures("long_pauses")
def test_a_job_that_keeps_failing_ends_after_its_attempts(
    supabase: EmbeddedSupabase, db: Database, user: User, stub_worker: WorkerProcess
) -> None:
    job = user.insert(target_worker="faulty", prompt="raise UploadFailed")
    for attempt in (1, 2, 3):
        stub_worker.wait_for("generation_error", job_id=job["id"], attempt=attempt)
        if attempt < 3:
            db.execute("update public.jobs set run_at = now() where id = %s", (job["id"],))  # not to wait for the pause
            user.insert(target_worker="faulty")  # a wake
    row = user.job(job["id"])
    assert (row["status"], row["attempts"], row["error_code"]) == ("failed", 3, "upload_failed")


def test_a_gpu_that_is_lost_ends_the_process_and_charges_nobody(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker="lost-gpu") as worker:
        job = user.insert(target_worker="lost-gpu", prompt="raise GpuUnusable")
        assert worker.wait_for_exit() == 70
    row = user.job(job["id"])
    assert (row["status"], row["attempts"], row["error_code"]) == ("queued", 0, "gpu_unusable")
    assert db.execute("select crashes from private.leases where job_id = %s", (job["id"],)).fetchone() == {"crashes": 1}
