"""One job from top to bottom. This is the page to read first.

Each job runs through here on a thread of its own. Only `paint` needs the GPU, under a lock; what comes before and after it overlaps
with the painting of the other jobs. No job waits for others to be painted together with it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
from PIL import Image

from ourvidz_sdxl import __version__, tracing
from ourvidz_sdxl.encode import describe, encode, thumbnail
from ourvidz_sdxl.engine import Engine
from ourvidz_sdxl.enhance import EnhancementFailed, Enhancer
from ourvidz_sdxl.errors import (
    ContentRefused,
    GpuUnusable,
    JobCancelled,
    JobInvalid,
    LeaseLost,
    OutOfMemory,
    ReferenceInvalid,
    Released,
    SupabaseRefused,
    SupabaseUnavailable,
    UnknownError,
    WorkerError,
)
from ourvidz_sdxl.fetch import fetch_reference
from ourvidz_sdxl.gpu import Gpu
from ourvidz_sdxl.heartbeat import heartbeat
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.metrics import GENERATION_TIME, IMAGES, JOBS, QUALITY_EVENTS, VRAM_RESERVED, VRAM_USAGE, WARNINGS, Stage
from ourvidz_sdxl.plan import NO_GUIDANCE, FewStep, I2IMode, Plan, make_plan
from ourvidz_sdxl.progress import Progress
from ourvidz_sdxl.prompts import is_blank
from ourvidz_sdxl.queue import Claimed, Lease, Outcome, Queue
from ourvidz_sdxl.reference import Warn, decode_reference, fit_reference
from ourvidz_sdxl.safety import NEGATIVE, ImageCheck, check_images, check_text
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.similarity import similarity
from ourvidz_sdxl.stages import Denoising, stage
from ourvidz_sdxl.storage import Storage, bucket_of, path_of
from ourvidz_sdxl.telemetry import withhold, withholding

log = structlog.get_logger()

# What Python and libraries raise for the arguments they are given.
DETERMINISTIC = (ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError)
ASKED_WRONGLY = (JobInvalid, ReferenceInvalid, ContentRefused)  # a user's fault: one line of log says it all
LOST = "lost"  # what the figures call the end of an attempt whose job is not this worker's any more
MAX_UPLOADS = 6  # of one job at a time: all images of the largest batch, since each upload mostly waits


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What jobs are done with, shared by all of them."""

    engine: Engine
    gpu: Gpu
    queue: Queue
    storage: Storage
    progress: Progress
    settings: Settings
    enhancer: Enhancer | None = None
    image_check: ImageCheck | None = None
    random_seed: Callable[[], int] = lambda: secrets.randbelow(2**31)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that the GPU waits for. `warnings` tell the user what goes otherwise than asked for."""

    plan: Plan
    reference: Image.Image | None
    enhanced_prompt: str | None = field(repr=False)
    warnings: list[dict[str, str]] = field(default_factory=list)


def process(claimed: Claimed, tools: Tools) -> None:
    """Does the job and ends it in the database, whatever happens. `tools.gpu.usable` says whether there can be another."""
    lease, job_type = claimed.lease, claimed.row.get("job_type")
    words = (claimed.row.get(name) for name in ("prompt", "negative_prompt", "reference_image_url"))
    facts = {"job_id": str(lease.job_id), "attempt": claimed.row.get("attempts")}
    with structlog.contextvars.bound_contextvars(**facts), withholding(*words):
        log.info("job_claimed", worker_id=tools.settings.worker_id)
        started = time.monotonic()
        with (
            heartbeat(lease, tools.queue, every_seconds=tools.settings.heartbeat_seconds),
            tracing.attempt(claimed.row, claim_seconds=claimed.claim_seconds, worker_id=tools.settings.worker_id) as traced,
        ):
            try:
                job = Job.from_row(claimed.row)
                with stage(Stage.PREPARE):
                    prepared = prepare(job, tools)
                painting, metrics = paint(job, prepared, lease, tools)
                check_images(tools.image_check, painting)
                images = deliver(job, prepared, painting, lease, tools)
                metrics["quality_events"] = monitor_generation_quality(metrics, images, tools.settings)
                if trace_id := tracing.trace_id():
                    metrics["trace_id"] = trace_id
                finished = finish(
                    tools.queue,
                    lease,
                    Outcome.COMPLETED,
                    images=images,
                    metrics=metrics,
                    warnings=prepared.warnings,
                    enhanced_prompt=prepared.enhanced_prompt,
                )
            except Exception as error:  # noqa: BLE001  each ends the job by its type, and an unknown one sends it to another worker
                outcome, error_code = end_failed(
                    lease, error, tools.queue, lambda: tools.gpu.passes_proof(lease.job_id, tools.engine.prove)
                )
                if outcome is Outcome.FAULTED:
                    tools.gpu.record_fault(lease.job_id, error_code)
            else:
                outcome, error_code = (Outcome.COMPLETED, "") if finished else (LOST, "")
                if prepared.plan.painted_steps:  # a mere copy of the reference proves nothing
                    tools.gpu.record_completed()
                if finished:
                    log.info("job_completed", seconds=round(time.monotonic() - started, 3), **metrics)
                    IMAGES.labels(job_type).inc(len(images))
                    for warning in prepared.warnings:
                        WARNINGS.labels(warning["code"]).inc()
            JOBS.labels(job_type, outcome, error_code).inc()
            traced.ended(outcome, error_code)


def prepare(job: Job, tools: Tools) -> Prepared:
    """Checks the texts, fetches the reference, enhances the prompt, makes the plan, encodes the prompts while another job paints.

    Raises ContentRefused; and ReferenceInvalid or SupabaseUnavailable where the job does not want to be painted from its text
    then, or where another attempt may still reach the reference.
    """
    texts = {"prompt": job.prompt, NEGATIVE: job.negative_prompt}
    check_text(texts, tools.settings.content_policy)
    warnings: list[dict[str, str]] = []
    reference = enhanced_prompt = None
    try:
        reference = load_reference(job, tools.storage, lambda code, message: warnings.append({"code": code, "message": message}))
    except (ReferenceInvalid, SupabaseUnavailable) as error:
        may_be_reached_later = error.retryable and job.attempts < job.max_attempts
        if may_be_reached_later or not job.fallback_to_text or is_blank(job.prompt):
            raise
        warnings.append({"code": "reference_dropped", "message": f"Painted from the prompt alone. {error.user_message}"})
        log.warning("reference_dropped", reason=str(error))
    if reference:
        check_images(tools.image_check, [reference])
    copies = reference is not None and job.exact_copy_mode
    if tools.enhancer and job.enhance_prompt and not is_blank(job.prompt) and not copies:
        try:
            enhanced_prompt = tools.enhancer.enhance(job.prompt)
            withhold(enhanced_prompt)
            check_text(texts | {"enhanced_prompt": enhanced_prompt}, tools.settings.content_policy)
        except EnhancementFailed as error:
            warnings.append({"code": "not_enhanced", "message": "Painted from your own prompt: it could not be enhanced in time."})
            log.warning("not_enhanced", reason=str(error))
    lora = tools.settings.fast_lora_path
    with refused_input():
        plan = make_plan(
            job,
            enhanced_prompt=enhanced_prompt,
            native_size=tools.engine.native_size,
            random_seed=tools.random_seed(),
            reference_size=reference.size if reference else None,
            guidance_interval=tools.settings.guidance_interval,
            default_steps=tools.settings.default_steps,
            default_guidance_scale=tools.settings.default_guidance,
            few_step=FewStep(lora=lora.stem, steps=tools.settings.fast_lora_steps) if lora else None,
        )
    if plan.guidance_scale <= NO_GUIDANCE and plan.mode is not I2IMode.COPY and not is_blank(job.negative_prompt):
        warnings.append(
            {"code": "negative_prompt_unused", "message": "Painted without guidance, where a negative prompt has no effect."}
        )
    if reference:
        with refused_input():
            reference = fit_reference(reference, plan.width, plan.height, job.metadata.fit)
    if tools.gpu.painting and plan.denoise:  # a free GPU is better given the whole job; a mere copy reads no prompt
        with tools.gpu.beside(), refused_input():
            tools.engine.encode_prompts(plan)
    return Prepared(plan=plan, reference=reference, enhanced_prompt=enhanced_prompt, warnings=warnings)


@contextmanager
def refused_input() -> Iterator[None]:
    """Raises JobInvalid in place of a DETERMINISTIC exception: any worker would meet it again with this job's input."""
    try:
        yield
    except DETERMINISTIC as error:
        raise JobInvalid(f"{type(error).__name__}: {error}") from error


def load_reference(job: Job, storage: Storage, warn: Warn) -> Image.Image | None:
    if job.reference_image_url is not None:
        return decode_reference(fetch_reference(job.reference_image_url), warn)
    if job.reference_image_path is not None:
        return decode_reference(storage.download_reference(job), warn)
    return None


def paint(job: Job, prepared: Prepared, lease: Lease, tools: Tools) -> tuple[Sequence[Image.Image], dict[str, Any]]:
    """The images, and the owner's `log_performance_metrics` (seconds, MiB)."""
    plan = prepared.plan
    shown = tools.settings.previews and tools.image_check is None  # what the check would refuse must not be seen beforehand

    def on_step(done: int, total: int) -> None:
        denoising.step()
        tools.gpu.step(done, total)
        lease.check()
        index = done % plan.batch_size  # each of the images in its turn
        tools.progress.step(job.id, done, total, lambda: (index, tools.engine.preview(index)) if shown else None)

    with tools.gpu.turn(lease), stage(Stage.PAINT), refused_input():
        started = time.monotonic()
        denoising = Denoising()
        try:
            painting = tools.engine.paint(plan, prepared.reference, on_step)
        except OutOfMemory as error:
            log.warning("out_of_memory", reason=str(error), batch_size=job.batch_size, width=plan.width, height=plan.height)
            painting = None
        if painting is None:  # outside of the except block, whose traceback holds the failed painting's tensors
            if tools.enhancer:
                tools.enhancer.unload()  # a language model in this process is the first to make room
            denoising = Denoising()
            painting = tools.engine.paint(plan, prepared.reference, on_step, frugal=True)
            prepared.warnings.append({"code": "low_memory", "message": "Painted in small pieces, since the GPU ran out of memory."})
        generation_time = time.monotonic() - started
        denoising.decoded()
        vram_usage, vram_reserved = tools.engine.peak_vram_mb(), tools.engine.reserved_vram_mb()
    GENERATION_TIME.labels(job.job_type, job.batch_size, plan.mode).observe(generation_time)
    VRAM_USAGE.set((vram_usage or 0) << 20)
    VRAM_RESERVED.set((vram_reserved or 0) << 20)
    return painting, {
        "worker": tools.settings.worker_id,
        "job_type": job.job_type,
        "generation_time": round(generation_time, 3),
        "batch_size": job.batch_size,
        "i2i_mode": plan.mode,
        "vram_usage": vram_usage,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "guided_steps": len(plan.guided_steps),
        "few_step_lora": plan.few_step_lora,
        "denoise": plan.denoise,
        "model_hash": tools.engine.model_hash,
    }


def deliver(job: Job, prepared: Prepared, painting: Sequence[Image.Image], lease: Lease, tools: Tools) -> list[dict[str, Any]]:
    """Uploads the images and their thumbnails; returns the rows of `job_images`, which only `finish_job` makes visible."""

    def deliver_one(index: int) -> dict[str, Any]:
        image = painting[index]
        words = describe(plan, index, model=engine.model, model_hash=engine.model_hash, version=__version__)
        with stage(Stage.ENCODE, index=index), refused_input():
            picture = encode(image, job.output_format, None if job.metadata.private_metadata else words)
            small = thumbnail(image)
        path, thumbnail_path = path_of(job, index, picture), path_of(job, index, small)
        with stage(Stage.UPLOAD, index=index, bytes=len(picture.content) + len(small.content)):
            for target, file in ((thumbnail_path, small), (path, picture)):
                lease.check()
                tools.storage.upload(bucket, target, file)
        return {
            "index": index,
            "bucket": bucket,
            "path": path,
            "thumbnail_path": thumbnail_path,
            "seed": plan.seeds[index],
            "width": image.width,
            "height": image.height,
            "mime_type": picture.mime_type,
            "bytes": len(picture.content),
            "sha256": picture.sha256,
            "similarity_score": round(similarity(image, reference), 4) if reference else None,
        }

    bucket, engine, plan, reference = bucket_of(job), tools.engine, prepared.plan, prepared.reference
    with tracing.span("deliver"), ThreadPoolExecutor(MAX_UPLOADS, thread_name_prefix="upload") as pool:
        # what belongs to this thread's job goes along: its span, the keys of its log lines, and the words that they withhold
        deliveries = [pool.submit(copy_context().run, deliver_one, index) for index in range(len(painting))]
        return [delivery.result() for delivery in deliveries]


def monitor_generation_quality(metrics: dict[str, Any], images: list[dict[str, Any]], settings: Settings) -> list[str]:
    """The owner's quality events: logs each, and returns their names. (`generation_error` is logged by `end_failed`.)"""
    events = []
    if metrics["generation_time"] > settings.slow_generation_seconds:
        events.append("slow_generation")
    scores = [image["similarity_score"] for image in images if image["similarity_score"] is not None]
    if scores and min(scores) < settings.low_similarity:
        events.append("low_i2i_similarity")
    for event in events:
        QUALITY_EVENTS.labels(event).inc()
        log.warning(event, generation_time=metrics["generation_time"], i2i_mode=metrics["i2i_mode"])
    return events


def end_failed(lease: Lease, error: Exception, queue: Queue, passes_proof: Callable[[], bool]) -> tuple[str, str]:
    """Writes the end that `error` calls for; returns its outcome and error code. A lost job is not ours to end, and its row is left
    alone.

    `passes_proof` is asked after a suspect error, and after one that seems to come from the job's input: a job that met a worker
    which can paint nothing goes back as if it had never been claimed.
    """
    if isinstance(error, LeaseLost):
        log.warning("job_lost", reason=str(error))
        return LOST, ""
    if isinstance(error, JobCancelled):
        finish(queue, lease, Outcome.CANCELLED)
        log.info("job_cancelled")
        return Outcome.CANCELLED, ""
    if isinstance(error, Released):
        finish(queue, lease, Outcome.RELEASED)
        log.info("job_released", reason=str(error))
        return Outcome.RELEASED, ""
    if isinstance(error, GpuUnusable):
        finish(queue, lease, Outcome.CRASHED, error={"code": error.code, "message": error.user_message})
        log.error("gpu_unusable", reason=str(error))
        return Outcome.CRASHED, error.code
    known = error if isinstance(error, WorkerError) else UnknownError()
    if (known.suspect or isinstance(known.__cause__, DETERMINISTIC)) and not passes_proof():
        outcome = Outcome.RELEASED
    elif known.suspect:
        outcome = Outcome.FAULTED
    else:
        outcome = Outcome.RETRY if known.retryable else Outcome.FAILED
    finish(queue, lease, outcome, error={"code": known.code, "message": known.user_message})
    if isinstance(known, ASKED_WRONGLY) and known.__cause__ is None:
        log.warning("generation_error", error_code=known.code, outcome=outcome, reason=known.user_message)
    else:
        log.error("generation_error", error_code=known.code, outcome=outcome, exc_info=error)
    QUALITY_EVENTS.labels("generation_error").inc()
    return outcome, known.code


def finish(queue: Queue, lease: Lease, outcome: Outcome, **details: Any) -> bool:
    """Whether the database took it. Where Supabase does not answer, the lease runs out and the job goes to another worker.

    Raises SupabaseRefused where the database does not accept the images of a completed job.
    """
    try:
        with stage(Stage.FINISH):
            verdict = queue.finish(lease, outcome, **details)
    except (SupabaseUnavailable, SupabaseRefused) as error:
        log.error("finish_not_delivered", outcome=outcome, reason=str(error))
        if outcome is Outcome.COMPLETED and isinstance(error, SupabaseRefused):
            raise
        return False
    if verdict == "lost":
        log.warning("job_lost", outcome=outcome)
    return verdict != "lost"
