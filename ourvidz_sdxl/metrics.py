"""Every figure that a worker counts, under Prometheus' rules: base units in the names, and labels from short, fixed lists.

A label is never a user, a job or anybody's words. Each figure costs about a microsecond where it is counted, whether or not anybody
asks for it. `docs/observability.md` lists them; a test holds the list against this page.
"""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)


class Stage(StrEnum):
    """What a job goes through. Encode and upload are of each image; the others of a job."""

    CLAIM = "claim"
    PREPARE = "prepare"
    GPU_WAIT = "gpu_wait"
    PAINT = "paint"
    DECODE = "decode"
    ENCODE = "encode"
    UPLOAD = "upload"
    FINISH = "finish"


class Wake(StrEnum):
    """Why the worker looks at the queue."""

    REALTIME = "realtime"  # a wake from the database
    SUBSCRIBED = "subscribed"  # for what came while it was deaf
    LOST = "lost"  # the subscription, so that the strict timer takes over
    LANE = "lane"  # a job left the GPU or the worker
    SECOND_LOOK = "second_look"
    TIMER = "timer"
    STOP = "stop"


CALLS = ("claim_jobs", "heartbeat_jobs", "finish_job", "report_worker", "sweep_orphans", "upload", "download", "remove")

# From a fast claim to a cold paint; a quarter of a second of resolution where an H100 paints.
STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 7.5, 10, 15, 30, 60, 120)
# a step of 2 rows on an H100 takes 0.028
STEP_BUCKETS = (0.01, 0.02, 0.025, 0.03, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10, 60)
WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing here reads
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

JOBS = Counter(
    "sdxl_jobs",
    "Ends of attempts; error_code is empty where nothing went wrong.",
    ["job_type", "outcome", "error_code"],
    registry=REGISTRY,
)
IMAGES = Counter("sdxl_images", "Images of completed jobs.", ["job_type"], registry=REGISTRY)
WARNINGS = Counter("sdxl_job_warnings", "What completed jobs were told went otherwise than asked for.", ["code"], registry=REGISTRY)
QUALITY_EVENTS = Counter(
    "sdxl_quality_events", "generation_error, slow_generation and low_i2i_similarity, as in the log.", ["event"], registry=REGISTRY
)
QUEUE_WAIT = Histogram(
    "sdxl_queue_wait_seconds",
    "From a job's insert, or the time it was put off to, until its claim.",
    ["job_type"],
    buckets=WAIT_BUCKETS,
    registry=REGISTRY,
)
STAGE = Histogram("sdxl_stage_seconds", "How long each stage of a job took.", ["stage"], buckets=STAGE_BUCKETS, registry=REGISTRY)
STEP = Histogram(
    "sdxl_step_seconds", "One denoising step of a whole batch, from the second step on.", buckets=STEP_BUCKETS, registry=REGISTRY
)
GENERATION_TIME = Histogram(
    "sdxl_generation_time_seconds",
    "A job's time on the GPU, as generation_time in the row and the log.",
    ["job_type", "batch_size", "i2i_mode"],
    buckets=STAGE_BUCKETS,
    registry=REGISTRY,
)
VRAM_USAGE = Gauge(
    "sdxl_vram_usage_bytes",
    "The highest use of the GPU's memory in the job painted last, as vram_usage in the row.",
    registry=REGISTRY,
)
VRAM_RESERVED = Gauge(
    "sdxl_vram_reserved_bytes",
    "What PyTorch holds of the GPU's memory, in use or not, after the job painted last.",
    registry=REGISTRY,
)
GPU_BUSY = Counter("sdxl_gpu_busy_seconds", "Time in which a job had the GPU.", registry=REGISTRY)
LANES = Gauge(
    "sdxl_lanes_occupied_jobs",
    "Jobs that are being prepared or wait for the GPU, that paint, and that are being delivered.",
    ["lane"],
    registry=REGISTRY,
)
WAKES = Counter("sdxl_wakes", "Looks at the queue, by what caused them.", ["source"], registry=REGISTRY)
REALTIME_CONNECTED = Gauge("sdxl_realtime_connected", "1 while the worker hears wakes, else 0.", registry=REGISTRY)
REALTIME_RECONNECTS = Counter(
    "sdxl_realtime_reconnects", "Connections to Realtime after one that was lost or refused.", registry=REGISTRY
)
RETRIES = Counter("sdxl_supabase_retries", "Calls to Supabase that were made again.", ["call"], registry=REGISTRY)
FAILURES = Counter(
    "sdxl_supabase_failures",
    "Calls to Supabase that were given up: it did not answer in time, or refused.",
    ["call", "reason"],
    registry=REGISTRY,
)
READY = Gauge("sdxl_worker_ready", "1 while the worker takes jobs, as /ready says, else 0.", registry=REGISTRY)
INFO = Gauge(
    "sdxl_worker_info",
    "Always 1; the labels say what runs here.",
    ["worker", "version", "target_worker", "model", "model_hash", "gpu_name", "engine"],
    registry=REGISTRY,
)


for _stage in Stage:  # what did not happen yet is 0 and not absent
    STAGE.labels(_stage)
for _call in CALLS:
    RETRIES.labels(_call)
for _source in Wake:
    WAKES.labels(_source)
for _event in ("generation_error", "slow_generation", "low_i2i_similarity"):
    QUALITY_EVENTS.labels(_event)


def render(registry: CollectorRegistry = REGISTRY) -> str:
    """All of it in Prometheus' text format."""
    return generate_latest(registry).decode()
