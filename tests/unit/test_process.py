"""The owner's quality events, and how each error ends its job."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from ourvidz_sdxl.errors import (
    GpuUnusable,
    JobCancelled,
    JobInvalid,
    LeaseLost,
    OutOfMemory,
    Released,
    UploadFailed,
    WorkerError,
)
from ourvidz_sdxl.process import end_failed, monitor_generation_quality
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
        (RuntimeError("a stranger"), [(Outcome.RETRY, "unknown_error")]),
        (JobCancelled(), [(Outcome.CANCELLED, None)]),
        (Released(), [(Outcome.RELEASED, None)]),
        (LeaseLost(), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_ends_its_job_by_its_type(error: Exception, ended: list[Any]) -> None:
    queue = RecordingQueue()
    end_failed(Lease(uuid4(), uuid4(), expires_at=60, clock=lambda: 0), error, queue)
    assert queue.ended == ended


def subclasses(root: type[WorkerError]) -> list[type[WorkerError]]:
    return [root, *(below for child in root.__subclasses__() for below in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(WorkerError))
def test_every_error_can_be_shown_to_a_user(kind: type[WorkerError]) -> None:
    assert kind.code.replace("_", "").isalpha()
    assert kind.user_message
    assert kind("for the operator").user_message == kind.user_message
    assert str(kind("for the operator")) == "for the operator"
