"""Is this machine fit to paint: the model, the GPU and its memory, the disk, the operator's own code."""

from __future__ import annotations

import os
import shutil
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ourvidz_sdxl.doctor.finding import Finding, fail, note, ok, skip
from ourvidz_sdxl.engine.checkpoint import check_headers, check_lora
from ourvidz_sdxl.engine.prediction import ScheduleSettings
from ourvidz_sdxl.errors import ModelInvalid, SettingsInvalid, WorkerError
from ourvidz_sdxl.safety import load_image_check
from ourvidz_sdxl.settings import Settings

GB = 10**9
CHECK_PATH = "Check MODEL_PATH, and copy or download the model again if it was cut off."
CHECK_LORA = "Check FAST_LORA_PATH, or leave it empty."
ROOM_BYTES = GB  # for what is kept beside a model: compiled kernels


def check_model(settings: Settings) -> Finding:
    path = settings.model_path
    if settings.model_url and not path.exists():
        return note(f"{path.name} is not there yet: the first start fetches it from MODEL_URL.")
    schedule = ScheduleSettings(prediction_type=settings.prediction_type, timestep_spacing=settings.timestep_spacing)
    try:
        check_headers(path, schedule=schedule)
    except WorkerError as error:
        return fail(f"{error}.", CHECK_PATH)
    try:
        if settings.fast_lora_path:
            check_lora(settings.fast_lora_path)
    except WorkerError as error:
        return fail(f"{error}.", CHECK_LORA)
    hashed = settings.model_sha256 and path.is_file()
    if hashed:
        with path.open("rb") as stream:
            digest = file_digest(stream, "sha256").hexdigest()
        if digest != settings.model_sha256:
            return fail(
                f"The SHA-256 of {path.name} is {digest}, and MODEL_SHA256 says {settings.model_sha256}.",
                "Delete the file, so that it is downloaded again, or mend MODEL_SHA256 if the model was changed on purpose.",
            )
    from ourvidz_sdxl.engine import check_tensors

    try:
        check_tensors(path, settings.fast_lora_path, schedule)
    except WorkerError as error:
        return fail(f"{error}.", f"{CHECK_PATH} {CHECK_LORA}" if settings.fast_lora_path else CHECK_PATH)
    return ok(f"{path.name}, and its SHA-256 is as expected" if hashed else path.name)


def check_engine(settings: Settings) -> Finding:
    """Which engine a worker would paint with here, and why not the fast one."""
    if not settings.model_path.exists():
        return skip("The model is not there.")
    from ourvidz_sdxl.engine import choose_engine

    try:
        choice = choose_engine(settings.model_path, settings.engine, fp8=settings.fp8)
    except SettingsInvalid as error:
        return fail(f"{error}.", "Set FP8=false, or ENGINE=auto.")
    except ModelInvalid:
        return skip("The model cannot be read.")
    return note(f"{choice.name}: {choice.note}") if choice.note else ok(choice.name)


def check_gpu(settings: Settings) -> Finding:
    """Asks the driver first, which costs nothing, and then PyTorch whether it can use what is there."""
    cards = visible_cards()
    if not cards:
        return note("None: the worker paints on the CPU, which takes minutes an image with a full-size model.")
    from ourvidz_sdxl.engine import why_no_cuda

    if reason := why_no_cuda():
        return fail(f"The driver sees {cards[0]['name']}, and PyTorch cannot use it: {reason}.", "Take a host with a newer driver.")
    small = [card for card in cards if card["total_bytes"] < settings.memory_limit_gb * GB]
    if small:
        return fail(
            f"{small[0]['name']} has {small[0]['total_bytes'] / GB:.0f} GB, and MEMORY_LIMIT_GB is {settings.memory_limit_gb:g}.",
            "Take a larger GPU, or lower MEMORY_LIMIT_GB: below 10, large batches are painted in small pieces.",
        )
    told = "; ".join(f"{c['name']}, {c['free_bytes'] / GB:.0f} of {c['total_bytes'] / GB:.0f} GB free" for c in cards)
    if any(card["free_bytes"] < settings.memory_limit_gb * GB for card in cards):
        return note(f"{told}: less than MEMORY_LIMIT_GB, unless it is the worker that has the rest.")
    return ok(told)


def visible_cards() -> list[dict[str, Any]]:
    """What the driver says of the GPUs that a worker here would use."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if wanted is None or {str(index), pynvml.nvmlDeviceGetUUID(handle)} & {*wanted.split(",")}:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                cards.append({"name": pynvml.nvmlDeviceGetName(handle), "total_bytes": memory.total, "free_bytes": memory.free})
        return cards
    finally:
        pynvml.nvmlShutdown()


def check_disk(settings: Settings) -> Finding:
    """Where the model is: beside it lie its compiled kernels and, with KEEP_WEIGHTS, its converted weights."""
    folder = next(place for place in settings.model_path.absolute().parents if place.is_dir())
    needed = ROOM_BYTES
    if settings.keep_weights and settings.engine != "reference" and visible_cards():
        kept = any(folder.glob(f"{settings.model_path.name}.*.runtime"))
        needed += 0 if kept else _size(settings.model_path)
    free = shutil.disk_usage(folder).free
    if free < needed:
        return fail(
            f"{free / GB:.1f} GB free in {folder}, of {needed / GB:.1f} GB needed.",
            "Delete what is not needed there or take a larger volume; KEEP_WEIGHTS=false needs less.",
        )
    return ok(f"{free / GB:.1f} GB free in {folder}")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))


def check_image_check(settings: Settings) -> Finding:
    if not settings.image_check:
        return ok("none")
    try:
        load_image_check(settings.image_check)
    except SettingsInvalid as error:
        return fail(f"{error}.", "Put the class on the Python path and see that it can be made without arguments.")
    return ok(settings.image_check)
