"""The owner's quality events, and how each error ends its job."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from PIL import Image

from ourvidz_sdxl.engine import EngineChoice, OnStep
from ourvidz_sdxl.errors import (
    BlankImage,
    ContentRefused,
    GpuUnusable,
    JobCancelled,
    JobInvalid,
    LeaseLost,
    OutOfMemory,
    ReferenceInvalid,
    Released,
    UploadFailed,
    UploadRefused,
    WorkerError,
)
from ourvidz_sdxl.gpu import Gpu
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.plan import Plan, make_plan
from ourvidz_sdxl.process import Prepared, end_failed, monitor_generation_quality, paint, prepare, refused_input
from ourvidz_sdxl.queue import Lease, Outcome, Queue
from ourvidz_sdxl.settings import Settings

SETTINGS = Settings.from_env({"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"})


@pytest.mark.parametrize(
    ("seconds", "similarities", "events"),
    [
        (9.9, [], []),
        (10.1, [], ["slow_generation"]),
        (1.0, [0.71, 0.9], []),
        (1.0, [0.9, 0.69], ["low_i2i_similarity"]),
        (11.0, [0.1], ["slow_generation", "low_i2i_similarity"]),
    ],
)
def test_quality_events_have_the_owners_names_and_thresholds(
    seconds: float, similarities: Sequence[float | None], events: list[str]
) -> None:
    metrics = {"generation_time": seconds, "i2i_mode": "modify"}
    images = [{"similarity_score": similarity} for similarity in similarities or (None,)]
    assert monitor_generation_quality(metrics, images, SETTINGS) == events


class CountingEngine:
    """Paints black, in as many steps as planned."""

    native_size, model, model_hash, gpu, vram_mb, choice = 128, "black", "00", None, None, EngineChoice(kind="black")

    def encode_prompts(self, plan: Plan) -> None:
        pass

    def peak_vram_mb(self) -> int | None:
        return None

    def reserved_vram_mb(self) -> int | None:
        return None

    def paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep, *, frugal: bool = False) -> list[Image.Image]:
        for step in range(plan.painted_steps):
            on_step(step + 1, plan.painted_steps)
        return [Image.new("RGB", (plan.width, plan.height))] * plan.batch_size


@pytest.mark.parametrize(
    ("columns", "metrics", "warned"),
    [
        ({}, {"steps": 4, "guided_steps": 0, "few_step_lora": "hyper-4"}, []),
        ({"negative_prompt": "blur"}, {"steps": 4, "guided_steps": 0, "few_step_lora": "hyper-4"}, ["negative_prompt_unused"]),
        ({"steps": 20, "negative_prompt": "blur"}, {"steps": 20, "guided_steps": 14, "few_step_lora": None}, []),
    ],
)
def test_the_operators_accelerations_reach_the_plan_and_the_metrics_say_so(
    columns: dict[str, Any], metrics: dict[str, Any], warned: list[str]
) -> None:
    accelerations = {"guidance_interval": (0.1, 0.8), "fast_lora_path": Path("/m/hyper-4.safetensors"), "fast_lora_steps": 4}
    progress = SimpleNamespace(step=lambda *_: None)
    tools: Any = SimpleNamespace(
        engine=CountingEngine(),
        gpu=Gpu(lambda _: None),
        storage=None,
        progress=progress,
        settings=SETTINGS.model_copy(update=accelerations),
        enhancer=None,
        image_check=None,
        random_seed=lambda: 7,
    )
    row = {"id": uuid4(), "user_id": USER, "claims": 1, "job_type": "sdxl_image_fast", "prompt": "a red circle"}
    job = Job.from_row(row | columns)
    prepared = prepare(job, tools)
    _, told = paint(job, prepared, Lease(job.id, uuid4(), expires_at=60, clock=lambda: 0), tools)
    assert {name: told[name] for name in metrics} == metrics
    assert [warning["code"] for warning in prepared.warnings] == warned


@pytest.mark.parametrize(
    ("previews", "image_check", "shown"), [(True, None, [1, 2, 0, 1]), (False, None, []), (True, lambda _: True, [])]
)
def test_previews_are_of_each_image_in_its_turn_and_of_none_where_images_are_checked(
    previews: bool, image_check: Any, shown: list[int]
) -> None:
    engine: Any = CountingEngine()
    engine.preview = lambda index: index
    seen: list[Any] = []
    tools: Any = SimpleNamespace(
        engine=engine,
        gpu=Gpu(lambda _: None),
        progress=SimpleNamespace(step=lambda *told: seen.append(told[-1]())),
        settings=SETTINGS.model_copy(update={"previews": previews}),
        image_check=image_check,
    )
    row = {
        "id": uuid4(),
        "user_id": uuid4(),
        "claims": 1,
        "job_type": "sdxl_image_fast",
        "prompt": "a",
        "steps": 4,
        "batch_size": 3,
    }
    job = Job.from_row(row)
    prepared = Prepared(plan=make_plan(job, native_size=128, random_seed=0), reference=None, enhanced_prompt=None)
    paint(job, prepared, Lease(job.id, uuid4(), expires_at=60, clock=lambda: 0), tools)
    assert [index for index, _ in filter(None, seen)] == shown


USER = UUID("22222222-2222-4222-8222-222222222222")


@pytest.mark.parametrize(
    ("somebody_paints", "columns", "encoded"),
    [
        (True, {}, ["a red circle"]),
        (False, {}, []),
        (True, {"reference_image_path": f"{USER}/x.png", "reference_strength": 0.5}, ["a red circle"]),
        (True, {"reference_image_path": f"{USER}/x.png", "reference_strength": 1}, []),
    ],
)
def test_prompts_are_encoded_ahead_where_another_job_paints_and_this_one_will(
    monkeypatch: pytest.MonkeyPatch, somebody_paints: bool, columns: dict[str, Any], encoded: list[str]
) -> None:
    picture, seen = Image.new("RGB", (64, 64)), []
    monkeypatch.setattr("ourvidz_sdxl.process.load_reference", lambda job, *_: picture if job.has_reference else None)
    gpu = Gpu(lambda _: None)
    tools: Any = SimpleNamespace(
        engine=SimpleNamespace(native_size=128, encode_prompts=lambda plan: seen.append(plan.prompt)),
        gpu=gpu,
        storage=None,
        settings=SETTINGS,
        enhancer=None,
        image_check=None,
        random_seed=lambda: 7,
    )
    row = {"id": uuid4(), "user_id": USER, "claims": 1, "job_type": "sdxl_image_fast", "prompt": "a red circle"}
    with gpu.turn(Lease(uuid4(), uuid4(), expires_at=60, clock=lambda: 0)) if somebody_paints else nullcontext():
        prepare(Job.from_row(row | columns), tools)
    assert seen == encoded


class RecordingQueue(Queue):
    """Takes note of how a job was ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[Outcome, str | None]] = []

    def finish(self, lease: Lease, outcome: Outcome, **details: Any) -> str:
        self.ended.append((outcome, (details.get("error") or {}).get("code")))
        return "ok"


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (JobInvalid(), [(Outcome.FAILED, "invalid_job")]),
        (OutOfMemory(), [(Outcome.FAILED, "out_of_memory")]),
        (UploadFailed(), [(Outcome.RETRY, "upload_failed")]),
        (GpuUnusable(), [(Outcome.CRASHED, "gpu_unusable")]),
        (UploadRefused(), [(Outcome.FAILED, "upload_refused")]),
        (BlankImage(), [(Outcome.FAULTED, "blank_image")]),
        (RuntimeError("a stranger"), [(Outcome.FAULTED, "unknown_error")]),
        (JobCancelled(), [(Outcome.CANCELLED, None)]),
        (Released(), [(Outcome.RELEASED, None)]),
        (LeaseLost(), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_ends_its_job_by_its_type(error: Exception, ended: list[Any]) -> None:
    queue = RecordingQueue()
    end_failed(Lease(uuid4(), uuid4(), expires_at=60, clock=lambda: 0), error, queue, lambda: True)
    assert queue.ended == ended


def refused(error: Exception) -> JobInvalid:
    with pytest.raises(JobInvalid) as raised, refused_input():
        raise error
    return raised.value


@pytest.mark.parametrize("error", [BlankImage(), RuntimeError(), refused(IndexError())])
def test_a_job_of_a_worker_that_can_paint_nothing_goes_back_uncharged(error: Exception) -> None:
    queue = RecordingQueue()
    end_failed(Lease(uuid4(), uuid4(), expires_at=60, clock=lambda: 0), error, queue, lambda: False)
    assert [outcome for outcome, _ in queue.ended] == [Outcome.RELEASED]


@pytest.mark.parametrize("error", [ValueError(), TypeError(), KeyError(), OverflowError(), NotImplementedError()])
def test_what_a_library_raises_for_a_jobs_input_is_no_fault_of_the_worker(error: Exception) -> None:
    with pytest.raises(JobInvalid), refused_input():
        raise error


@pytest.mark.parametrize("error", [RuntimeError(), OSError(), BlankImage(), JobCancelled()])
def test_other_exceptions_keep_their_type(error: Exception) -> None:
    with pytest.raises(type(error)), refused_input():
        raise error


def subclasses(root: type[WorkerError]) -> list[type[WorkerError]]:
    return [root, *(below for child in root.__subclasses__() for below in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(WorkerError))
def test_every_error_can_be_shown_to_a_user(kind: type[WorkerError]) -> None:
    assert kind.code.replace("_", "").isalpha()
    assert kind.user_message
    assert kind("for the operator").user_message == kind.user_message
    assert str(kind("for the operator")) == "for the operator"


@pytest.mark.parametrize(
    ("error", "level", "with_traceback"),
    [
        (JobInvalid(user_message="This job cannot be painted: width"), "warning", False),
        (ReferenceInvalid("PNG: a chunk is cut off", user_message="The reference image is damaged."), "warning", False),
        (ContentRefused(), "warning", False),
        (UploadFailed("504"), "error", True),
        (RuntimeError("a stranger"), "error", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_its_user_did_wrong_is_one_line_of_log(error: Exception, level: str, with_traceback: bool) -> None:
    with structlog.testing.capture_logs() as told:
        end_failed(Lease(uuid4(), uuid4(), expires_at=60, clock=lambda: 0), error, RecordingQueue(), lambda: True)
    [line] = told
    assert (line["event"], line["log_level"], "exc_info" in line) == ("generation_error", level, with_traceback)
    assert with_traceback or line["reason"] == error.user_message  # type: ignore[attr-defined]
