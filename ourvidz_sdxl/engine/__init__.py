"""Plan -> images. The engine knows neither Supabase nor rows, and is the only place that imports torch.

This page is what the rest of the worker sees of it; torch itself is imported by `load_engine`, once, before the first claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import structlog
from PIL import Image

from ourvidz_sdxl.plan import Plan

log = structlog.get_logger()


EngineKind = Literal["auto", "fast", "reference"]
"""`auto` is `fast` where that was shown to work, else `reference`."""

OnStep = Callable[[int, int], None]
"""Called after each denoising step with (done, total). What it raises ends the painting and reaches the caller."""


class Engine(Protocol):
    """A loaded model. One call of `paint` at a time."""

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
    def vram_mb(self) -> int | None:
        """The GPU's memory in MiB, or None on the CPU."""

    def paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep, *, frugal: bool = False) -> Sequence[Image.Image]:
        """One RGB image of plan.width x plan.height for each of plan.seeds; `reference` has that size too.

        `frugal` is for a GPU that ran out of memory: one image after the other, and the VAE in tiles, whose seams it blends.
        Raises OutOfMemory or BlankImage (the engine stays usable), or GpuUnusable (only a new process helps).
        """

    def peak_vram_mb(self) -> int | None:
        """The highest memory use since the last call of this method, in MiB; None on the CPU."""


def load_engine(model_path: Path, kind: EngineKind = "auto") -> Engine:
    """Loads the checkpoint onto the GPU, or the CPU where there is none.

    Raises ModelMissing or ModelInvalid; the latter, too, where the fast path was asked for and cannot paint this model.
    """
    from ourvidz_sdxl.engine.fast.engine import FastEngine, why_not_fast
    from ourvidz_sdxl.engine.sdxl import SdxlEngine

    obstacle = why_not_fast(model_path)
    if kind == "fast" or (kind == "auto" and obstacle is None):
        return FastEngine.load(model_path)
    log.info("plain_engine", reason=obstacle or "asked for")
    return SdxlEngine.load(model_path)
