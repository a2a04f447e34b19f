"""Job -> Plan: every number the GPU needs and nothing it has to look up. Pure: no torch, no clock, no network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from ourvidz_sdxl.job import LCM_MAX_STEPS, Job, JobType, Scheduler
from ourvidz_sdxl.prompts import join_negative

# Steps and guidance where neither the job nor the operator names any; the OurVidz platform's values.
STEPS = {JobType.FAST: 15, JobType.HIGH: 25}
GUIDANCE_SCALE = {JobType.FAST: 6.0, JobType.HIGH: 7.5}

# The owner's `process_i2i_parameters`: half the reference by default, at most 5 % noise when copying, and no guidance then.
DEFAULT_REFERENCE_STRENGTH = 0.5
COPY_MAX_DENOISE = 0.05
NO_GUIDANCE = 1.0  # the scale at which the conditional prediction is the guided one

MAX_SCHEDULE_STEPS = 1000  # SDXL's schedulers know 1000 training timesteps
# Denoise strengths are counted in millionths. In binary, 1.0 - 0.8 is 0.19999999999999996 and a 32-bit 0.8 is off by 1e-8.
DENOISE_DIGITS = 6  # WHOLE_SCHEDULE is 10 to that power
WHOLE_SCHEDULE = 1_000_000


class I2IMode(StrEnum):
    """The owner's `detect_i2i_mode`."""

    NONE = "none"
    MODIFY = "modify"
    COPY = "copy"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`denoise` is the share of the schedule that runs: 1 paints from noise, 0 returns the reference itself.

    `steps` is the length of the whole schedule; `painted_steps` of them run. `seeds[i]` belongs to image i.
    `guidance_interval` is the part of the schedule that is guided, in shares of `steps`. `few_step_lora` names the LoRA whose UNet
    paints, with timesteps as it was trained for (`schedulers.few_step_scheduler`); None is the checkpoint's own UNet.
    """

    mode: I2IMode
    prompt: str = field(repr=False)
    negative_prompt: str = field(repr=False)
    width: int
    height: int
    steps: int
    guidance_scale: float
    scheduler: Scheduler | None
    denoise: float
    seeds: tuple[int, ...]
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    few_step_lora: str | None = None

    @property
    def batch_size(self) -> int:
        return len(self.seeds)

    @property
    def painted_steps(self) -> int:
        return painted_steps(self.steps, self.denoise)

    @property
    def guided_steps(self) -> range:
        """Which of the painted steps, counted from 0, are guided; the others have the conditional prediction alone.

        The interval's ends are rounded to whole steps of the schedule, so that intervals side by side share none. Empty without
        guidance, and where only steps outside of the interval are painted.
        """
        if self.guidance_scale <= 1:
            return range(0)
        skipped = self.steps - self.painted_steps
        start, stop = (max(0, round(share * self.steps) - skipped) for share in self.guidance_interval)
        return range(start, stop)


@dataclass(frozen=True, kw_only=True)
class FewStep:
    """The operator's few-step LoRA: its name, and the number of steps that it was trained for."""

    lora: str
    steps: int


def i2i_mode(job: Job) -> I2IMode:
    if not job.has_reference:
        return I2IMode.NONE
    return I2IMode.COPY if job.exact_copy_mode else I2IMode.MODIFY


def painted_steps(steps: int, denoise: float) -> int:
    """floor(steps * denoise), where `denoise` is the decimal fraction of six places that is nearest to it: 25 * 0.2 is 5.

    diffusers computes int(steps * strength) in binary fractions, which is 4 for 25 * (1.0 - 0.8).
    """
    return steps * round(denoise * WHOLE_SCHEDULE) // WHOLE_SCHEDULE


def schedule_steps(steps: int, denoise: float) -> int:
    """The shortest schedule of at least `steps` in which `denoise` comes to one painted step or more.

    15 steps at 0.05 would paint none; a longer schedule keeps the noise level that was asked for, where rounding the strength up
    would change the picture.
    """
    share = round(denoise * WHOLE_SCHEDULE)
    return max(steps, min(MAX_SCHEDULE_STEPS, math.ceil(WHOLE_SCHEDULE / share))) if share else steps


def size_like(reference_size: tuple[int, int], native_size: int) -> tuple[int, int]:
    """The size with the reference's aspect and about the model's own area, in pixels.

    Edges are multiples of a sixteenth of the native one (64 for SDXL, as in its training buckets) and stay within half and twice
    of it; a reference that is longer than 4:1 is fitted into that.
    """
    grain = native_size // 16
    aspect = reference_size[0] / reference_size[1]
    edges = (native_size * aspect**0.5, native_size / aspect**0.5)
    width, height = (min(2 * native_size, max(native_size // 2, round(edge / grain) * grain)) for edge in edges)
    return width, height


def make_plan(
    job: Job,
    *,
    native_size: int,
    random_seed: int,
    reference_size: tuple[int, int] | None = None,
    enhanced_prompt: str | None = None,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    few_step: FewStep | None = None,
    default_steps: int | None = None,
    default_guidance_scale: float | None = None,
) -> Plan:
    """What the engine is told.

    `native_size` is the model's own edge in pixels, for a job without a size; `random_seed` is for a job without a seed.
    `reference_size` is (width, height) of the reference that was loaded; without one the job is painted from its text.
    `few_step` is for fast jobs that name no steps, guidance scale or scheduler of their own and leave it a step to paint, which a
    copy does not: such a LoRA knows only the noise levels of its own steps, and a copy is one unguided step anyway.
    `default_steps` and `default_guidance_scale` are the operator's, for other jobs that name none; without, the job type's hold.
    """
    mode = i2i_mode(job) if reference_size else I2IMode.NONE
    steps = job.steps or default_steps or STEPS[job.job_type]
    if job.scheduler is Scheduler.LCM:
        steps = min(steps, LCM_MAX_STEPS)
    guidance_scale = GUIDANCE_SCALE[job.job_type] if default_guidance_scale is None else default_guidance_scale
    if job.guidance_scale is not None:
        guidance_scale = job.guidance_scale
    strength = job.reference_strength
    match mode:
        case I2IMode.NONE:
            denoise = 1.0
        case I2IMode.MODIFY:
            denoise = 1.0 - (DEFAULT_REFERENCE_STRENGTH if strength is None else strength)
        case I2IMode.COPY:
            denoise = COPY_MAX_DENOISE if strength is None else min(strength, COPY_MAX_DENOISE)
            guidance_scale = NO_GUIDANCE
    denoise = round(denoise, DENOISE_DIGITS)
    if denoise:
        denoise = max(denoise, 1 / MAX_SCHEDULE_STEPS)
    scheduler = job.scheduler
    free = job.steps is None and job.guidance_scale is None and scheduler is None
    if few_step and not (job.job_type is JobType.FAST and free and painted_steps(few_step.steps, denoise) >= 1):
        few_step = None
    if few_step:
        steps, guidance_scale, scheduler = few_step.steps, NO_GUIDANCE, Scheduler.EULER
    seed = random_seed if job.seed is None else job.seed
    width, height = job.width, job.height
    if width is None or height is None:
        width, height = size_like(reference_size, native_size) if reference_size else (native_size, native_size)
    return Plan(
        mode=mode,
        prompt=enhanced_prompt or job.prompt,
        negative_prompt="" if mode is I2IMode.COPY or few_step else join_negative(job.negative_preset, job.negative_prompt),
        width=width,
        height=height,
        steps=schedule_steps(steps, denoise),
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        denoise=denoise,
        seeds=tuple(seed + i for i in range(job.batch_size)),
        guidance_interval=guidance_interval,
        few_step_lora=few_step.lora if few_step else None,
    )
