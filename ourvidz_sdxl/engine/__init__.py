"""Plan -> images. The engine knows neither Supabase nor rows, and is the only place that imports torch.

This page is what the rest of the worker sees of it; torch itself is imported by `load_engine`, once, before the first claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import structlog
from PIL import Image

from ourvidz_sdxl.engine.checkpoint import check_headers
from ourvidz_sdxl.engine.head_start import head_start
from ourvidz_sdxl.engine.prediction import NO_SETTINGS, ScheduleSettings
from ourvidz_sdxl.errors import SettingsInvalid
from ourvidz_sdxl.plan import Plan

log = structlog.get_logger()


EngineKind = Literal["auto", "fast", "reference"]
"""`auto` is `fast` where that was shown to work, else `reference`."""

OnStep = Callable[[int, int], None]
"""Called after each denoising step with (done, total). What it raises ends the painting and reaches the caller."""


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """`note` says to the operator why it is not the fast one, or not with FP8; None where all is as fast as it can be here."""

    kind: str
    fp8: bool = False
    note: str | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}, FP8" if self.fp8 else self.kind


class Engine(Protocol):
    """A loaded model. One call of `paint` at a time; `encode_prompts` may run beside it, on any thread."""

    @property
    def native_size(self) -> int:
        """The edge, in pixels, of the square that the model was trained for."""

    @property
    def model(self) -> str:
        """What is loaded, for people: the checkpoint's name."""

    @property
    def model_hash(self) -> str:
        """Tells checkpoints apart; goes into the images' metadata."""

    @property
    def gpu(self) -> str | None:
        """The GPU's name, or None on the CPU."""

    @property
    def choice(self) -> EngineChoice:
        """Which engine this is, and why not another one."""

    @property
    def vram_mb(self) -> int | None:
        """The GPU's memory in MiB, or None on the CPU."""

    def warm_up(self) -> bool:
        """Prepares one more of the usual kinds of job, which saves the first of that kind a second; False once nothing is left.

        Never beside `paint`. Raises OutOfMemory or GpuUnusable.
        """

    def prove(self) -> None:
        """Paints a few tiny steps with every scheduler, encodes and decodes: are all values finite? Loading ends with it.

        Never beside `paint`. Raises ModelInvalid that names the part at fault, OutOfMemory or GpuUnusable.
        """

    def encode_prompts(self, plan: Plan) -> None:
        """Has the plan's prompts ready for `paint`, which encodes them itself where this was not called or found no memory.

        Raises GpuUnusable.
        """

    def paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep, *, frugal: bool = False) -> Sequence[Image.Image]:
        """One RGB image of plan.width x plan.height for each of plan.seeds; `reference` has that size too.

        `frugal` is for a GPU that ran out of memory: one image after the other, and the VAE in tiles, whose seams it blends.
        Raises OutOfMemory or BlankImage (the engine stays usable), or GpuUnusable (only a new process helps).
        """

    def preview(self, index: int) -> Image.Image | None:
        """Within `on_step` only: what image `index` looks like so far, an eighth as large; None where that cannot be told."""

    def reserved_vram_mb(self) -> int | None:
        """What is kept of the GPU's memory now, in use or not, in MiB; None on the CPU."""

    def peak_vram_mb(self) -> int | None:
        """The highest memory use since the last call of this method, in MiB; None on the CPU."""


def why_no_cuda() -> str | None:
    """Why PyTorch cannot use the GPU, in its own words; None where it can."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.mem_get_info()
    except (AssertionError, RuntimeError) as error:
        return str(error).partition("\n")[0]
    return None


def check_tensors(model_path: Path, few_step_lora: Path | None = None, schedule: ScheduleSettings = NO_SETTINGS) -> None:
    """Makes every check of `load_engine` that needs no weights, with torch; raises ModelMissing or ModelInvalid."""
    from ourvidz_sdxl.engine.load import MODELS, load_components
    from ourvidz_sdxl.engine.lora import with_lora

    parts = load_components(model_path, device="cpu", empty=MODELS, schedule=schedule)
    if few_step_lora:
        with_lora(parts.unet, few_step_lora)


def choose_engine(model_path: Path, kind: EngineKind = "auto", *, fp8: bool = False) -> EngineChoice:
    """Which engine is to paint with this model here.

    `auto` leaves out what cannot be had, and says so; what was asked for by name and cannot be had raises SettingsInvalid.
    Raises ModelInvalid, too.
    """
    from ourvidz_sdxl.engine.fast.engine import why_no_fp8, why_not_fast

    obstacle = why_not_fast(model_path)
    fast = kind == "fast" or (kind == "auto" and obstacle is None)
    notes = [] if fast else [obstacle if kind == "auto" and obstacle else "ENGINE=reference"]
    if fp8 and (reason := why_no_fp8() if fast else "only the fast engine has it"):
        refused = f"FP8=true cannot be had here: {reason}"
        if kind != "auto":
            raise SettingsInvalid(refused)
        notes, fp8 = [*notes, refused], False
    return EngineChoice(kind="fast" if fast else "reference", fp8=fp8, note="; ".join(notes) or None)


@dataclass(frozen=True, kw_only=True)
class FastOptions:
    """`fp8`: whether the transformer blocks multiply in 8 bits. `keep_weights`: whether converted weights stay on disk.

    `memory_limit_gb` (10^9 bytes): beyond it, graphs of shapes that were painted before are let go.
    """

    fp8: bool = False
    keep_weights: bool = False
    memory_limit_gb: float = math.inf


DEFAULT_OPTIONS = FastOptions()


def load_engine(
    model_path: Path,
    kind: EngineKind = "auto",
    *,
    few_step_lora: Path | None = None,
    options: FastOptions = DEFAULT_OPTIONS,
    schedule: ScheduleSettings = NO_SETTINGS,
) -> Engine:
    """Loads the checkpoint onto the GPU, or the CPU where there is none. `few_step_lora` makes a second UNet, for plans of it.

    `schedule` overrides what the checkpoint says of its prediction type and timesteps. Loading ends with `Engine.prove`.

    Raises ModelMissing, or ModelInvalid for what is not a model that can be painted with; that, too, where the fast path was asked
    for and cannot paint this model. Raises SettingsInvalid as `choose_engine` does.
    """
    check_headers(model_path, few_step_lora, schedule)  # before the seconds that torch takes to import
    head_start(model_path)
    from ourvidz_sdxl.engine.fast.engine import FastEngine
    from ourvidz_sdxl.engine.proof import model_errors
    from ourvidz_sdxl.engine.sdxl import SdxlEngine

    with model_errors(model_path.name):
        choice = choose_engine(model_path, kind, fp8=options.fp8)
        (log.warning if choice.fp8 != options.fp8 else log.info)("engine_chosen", engine=choice.kind, note=choice.note)
        engine: FastEngine | SdxlEngine
        if choice.kind == "fast":
            engine = FastEngine.load(model_path, few_step_lora, replace(options, fp8=choice.fp8), schedule=schedule)
        else:
            engine = SdxlEngine.load(model_path, few_step_lora, schedule=schedule)
        engine.choice = choice
        return engine
