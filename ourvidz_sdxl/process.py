"""One job from top to bottom. This is the page to read first.

Each job runs through here on a thread of its own. Only `paint` needs the GPU, under a lock; what comes before and after it overlaps
with the painting of the other jobs.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from PIL import Image

from ourvidz_sdxl.encode import encode, thumbnail
from ourvidz_sdxl.engine import Engine
from ourvidz_sdxl.errors import (
    GpuUnusable,
    JobCancelled,
    LeaseLost,
    ReferenceInvalid,
    Released,
    SupabaseUnavailable,
    WorkerError,
)
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.plan import Plan, make_plan
from ourvidz_sdxl.progress import Progress
from ourvidz_sdxl.queue import Claimed, Lease, Outcome, Queue
from ourvidz_sdxl.reference import decode_reference, fit_reference
from ourvidz_sdxl.storage import Storage, bucket_of, path_of

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What jobs are done with, shared by all of them."""

    engine: Engine
    gpu: threading.Lock
    queue: Queue
    storage: Storage
    progress: Progress
    worker_id: str
    random_seed: Callable[[], int] = lambda: secrets.randbelow(2**31)


def process(claimed: Claimed, tools: Tools) -> None:
    """Does the job and ends it in the database, whatever happens. Raises GpuUnusable on, since the process must end then."""
    lease = claimed.lease
    with structlog.contextvars.bound_contextvars(job_id=str(lease.job_id), attempt=claimed.row.get("attempts")):
        log.info("job_claimed", worker_id=tools.worker_id)
        started = time.monotonic()
        try:
            job = Job.from_row(claimed.row)
            plan = make_plan(job, native_size=tools.engine.native_size, random_seed=tools.random_seed())
            reference = prepare_reference(job, plan, tools.storage)
            painting, metrics = paint(job, plan, reference, lease, tools)
            images = deliver(job, plan, painting, lease, tools.storage)
        except Exception as error:
            end_failed(lease, error, tools.queue)
            if isinstance(error, GpuUnusable):
                raise
        else:
            finish(tools.queue, lease, Outcome.COMPLETED, images=images, metrics=metrics)
            log.info("job_completed", seconds=round(time.monotonic() - started, 3), **metrics)


def prepare_reference(job: Job, plan: Plan, storage: Storage) -> Image.Image | None:
    if not job.has_reference:
        return None
    if job.reference_image_url is not None:
        raise ReferenceInvalid(user_message="This worker takes references from Storage only; use reference_image_path.")
    return fit_reference(decode_reference(storage.download_reference(job)), plan.width, plan.height)


def paint(
    job: Job, plan: Plan, reference: Image.Image | None, lease: Lease, tools: Tools
) -> tuple[Sequence[Image.Image], dict[str, Any]]:
    """The images, and the owner's `log_performance_metrics` (seconds, MiB)."""

    def on_step(done: int, total: int) -> None:
        lease.check()
        lease.progress = 100 * done // (total + 1)  # the last share is delivery
        tools.progress.step(job.id, done, total)

    with tools.gpu:
        lease.check()
        started = time.monotonic()
        painting = tools.engine.paint(plan, reference, on_step)
        generation_time = time.monotonic() - started
        vram_usage = tools.engine.peak_vram_mb()
    return painting, {
        "worker": tools.worker_id,
        "job_type": job.job_type,
        "generation_time": round(generation_time, 3),
        "batch_size": job.batch_size,
        "i2i_mode": plan.mode,
        "vram_usage": vram_usage,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "denoise": plan.denoise,
    }


def deliver(job: Job, plan: Plan, painting: Sequence[Image.Image], lease: Lease, storage: Storage) -> list[dict[str, Any]]:
    """Uploads the images and their thumbnails; returns the rows of `job_images`, which only `finish_job` makes visible."""
    bucket, rows = bucket_of(job), []
    for index, (image, seed) in enumerate(zip(painting, plan.seeds, strict=True)):
        picture, small = encode(image, job.output_format), thumbnail(image)
        path, thumbnail_path = path_of(job, index, picture), path_of(job, index, small)
        for target, file in ((path, picture), (thumbnail_path, small)):
            lease.check()
            storage.upload(bucket, target, file)
        rows.append(
            {
                "index": index,
                "bucket": bucket,
                "path": path,
                "thumbnail_path": thumbnail_path,
                "seed": seed,
                "width": image.width,
                "height": image.height,
                "mime_type": picture.mime_type,
                "bytes": len(picture.content),
                "sha256": picture.sha256,
            }
        )
    return rows


def end_failed(lease: Lease, error: Exception, queue: Queue) -> None:
    """Writes the end that `error` calls for. A lost job is not ours to end, and its row is left alone."""
    if isinstance(error, LeaseLost):
        log.warning("job_lost", reason=str(error))
    elif isinstance(error, JobCancelled):
        finish(queue, lease, Outcome.CANCELLED)
        log.info("job_cancelled")
    elif isinstance(error, Released | GpuUnusable):
        finish(queue, lease, Outcome.RELEASED)
        log.info("job_released", reason=str(error))
    else:
        known = error if isinstance(error, WorkerError) else WorkerError()
        outcome = Outcome.RETRY if known.retryable else Outcome.FAILED
        finish(queue, lease, outcome, error={"code": known.code, "message": known.user_message})
        log.error("job_failed", error_code=known.code, outcome=outcome, exc_info=error)


def finish(queue: Queue, lease: Lease, outcome: Outcome, **details: Any) -> None:
    """Where Supabase does not answer, the lease runs out by itself and the job goes to another worker."""
    try:
        verdict = queue.finish(lease, outcome, **details)
    except SupabaseUnavailable as error:
        log.error("finish_not_delivered", outcome=outcome, reason=str(error))
    else:
        if verdict == "lost":
            log.warning("job_lost", outcome=outcome)
