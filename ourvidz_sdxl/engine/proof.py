"""The proof painting: a checkpoint, a LoRA and every scheduler are tried before a worker claims its first job.

NaN in a weight, an overflow in 16 bits or a scheduler that does not fit the checkpoint load without an error, and would then
fail every job. `SdxlEngine.prove` finds them, and here is what it needs for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor, nn

from ourvidz_sdxl.errors import ModelInvalid
from ourvidz_sdxl.job import JobType, Scheduler
from ourvidz_sdxl.plan import GUIDANCE_SCALE, NO_GUIDANCE, I2IMode, Plan

PROOF_EDGE = 64  # pixels: the least that a row written around the constraints may ask for (`Job`)

# Errors of code that meets a model which it was not written for. None of them is the machine's fault: those of memory and driver
# have names of their own (`named_faults`), and those of files are OSErrors.
MODEL_ERRORS = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
DEVICE_ERROR = re.compile(r"CUDA|CUBLAS|cuBLAS|CUDNN|cuDNN|NVRTC|Triton")  # in RuntimeErrors that torch raises for libraries


@contextmanager
def model_errors(model: str) -> Iterator[None]:
    """Raises ModelInvalid for an error within it that nothing else translated and that is not the machine's."""
    try:
        yield
    except MODEL_ERRORS as error:
        if DEVICE_ERROR.search(str(error)):
            raise
        raise ModelInvalid(f"{model} cannot be painted with: {type(error).__name__}: {error}") from error


def proof_plans(edge: int, *, few_step: bool) -> Iterator[tuple[str, Plan]]:
    """Paintings of `edge` x `edge` pixels, each with the name of the part that is at fault if only this one fails.

    Euler's steps are linear in the prediction, and so show whether the UNet's are finite. `few_step`: there is a LoRA's, too.
    """

    def plan(scheduler: Scheduler | None, guidance_scale: float, lora: str | None = None) -> Plan:
        return Plan(
            mode=I2IMode.NONE,
            prompt="",
            negative_prompt="",
            width=edge,
            height=edge,
            steps=1,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            denoise=1,
            seeds=(0,),
            few_step_lora=lora,
        )

    guided = GUIDANCE_SCALE[JobType.HIGH]
    yield "the UNet", plan(Scheduler.EULER, guided)
    if few_step:
        yield "the UNet with the few-step LoRA", plan(Scheduler.EULER, NO_GUIDANCE, "proof")
    yield "the checkpoint's own scheduler", plan(None, guided)
    for scheduler in Scheduler:
        if scheduler is not Scheduler.EULER:
            yield f"the scheduler {scheduler}", plan(scheduler, guided)


def proof_picture(edge: int) -> Image.Image:
    """An RGB gradient."""
    return Image.linear_gradient("L").resize((edge, edge)).convert("RGB")


def require_finite(part: str, *values: Tensor) -> None:
    """Raises ModelInvalid that names the part."""
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise ModelInvalid(f"{part} gives values that are not finite (NaN or infinity)")


def require_finite_weights(part: str, model: nn.Module) -> None:
    """Raises ModelInvalid that names a weight. A token's embedding, for one, shows only in prompts with that token."""
    names, finite = zip(*((name, torch.isfinite(weight).all()) for name, weight in model.named_parameters()), strict=True)
    for name, is_finite in zip(names, torch.stack(finite).tolist(), strict=True):  # one transfer from the device
        if not is_finite:
            raise ModelInvalid(f"the {part} has a weight that is not finite (NaN or infinity): {name}")
