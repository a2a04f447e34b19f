"""`worker.py doctor`: is everything there that the worker needs? Each fault comes with its mend."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from rich.console import Console
from storage3.exceptions import StorageApiError

from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.engine.checkpoint import check_file, check_folder, check_lora
from ourvidz_sdxl.errors import SupabaseRefused, SupabaseUnavailable, WorkerError
from ourvidz_sdxl.queue import Lease, Queue
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import Wakeup

REALTIME_SECONDS = 10


def examine(settings: Settings) -> int:
    """Prints one line for each check; returns 0 when all is well, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    checks: dict[str, Callable[[], str | None]] = {
        "queue functions": lambda: _functions(settings),
        "buckets": lambda: _buckets(settings),
        "realtime": lambda: _realtime(settings),
        "model": lambda: _model(settings),
    }
    faults = 0
    for name, check in checks.items():
        fault = check()
        faults += fault is not None
        console.print(f"{'ok  ' if fault is None else 'FAIL'} {name}{'' if fault is None else ': ' + fault}", markup=False)
    return 1 if faults else 0


def _functions(settings: Settings) -> str | None:
    queue = Queue(connect(settings), settings)
    lease = Lease(uuid4(), uuid4(), 0)
    try:
        queue.heartbeat(lease)  # of a job that does not exist: asks every right and changes nothing
    except (SupabaseUnavailable, SupabaseRefused) as error:
        return f"{error}. Check SUPABASE_URL and the secret key, and run `supabase db push`."
    return None


def _buckets(settings: Settings) -> str | None:
    try:
        there = {bucket.id: bucket.public for bucket in connect(settings).storage.list_buckets()}
    except StorageApiError as error:
        return f"Storage answers {error.code}. Check SUPABASE_URL and the secret key."
    missing = {*settings.job_types, "reference_images"} - there.keys()
    if missing:
        return f"{', '.join(sorted(missing))} missing. Run `supabase db push`."
    if public := [name for name, is_public in there.items() if is_public and name in {*settings.job_types, "reference_images"}]:
        return f"{', '.join(public)} is public: anybody can read its images. Make it private in the dashboard."
    return None


def _realtime(settings: Settings) -> str | None:
    with Wakeup(settings, on_cancel=lambda _: None) as wakeup:
        if wakeup.wait_connected(REALTIME_SECONDS):
            return None
    return (
        f"no subscription to worker:{settings.target_worker} within {REALTIME_SECONDS} s. Check that Realtime is on for the "
        f"project; without it the worker asks every {settings.poll_interval_seconds:g} s."
    )


def _model(settings: Settings) -> str | None:
    try:
        (check_folder if settings.model_path.is_dir() else check_file)(settings.model_path)
    except WorkerError as error:
        return f"{error}. Check MODEL_PATH."
    try:
        if settings.fast_lora_path:
            check_lora(settings.fast_lora_path)
    except WorkerError as error:
        return f"{error}. Check FAST_LORA_PATH."
    return None
