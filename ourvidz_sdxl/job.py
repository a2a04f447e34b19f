"""A row of `public.jobs`, parsed once and trusted afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ourvidz_sdxl.errors import JobInvalid


class JobType(StrEnum):
    FAST = "sdxl_image_fast"
    HIGH = "sdxl_image_high"


class OutputFormat(StrEnum):
    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


class Scheduler(StrEnum):
    """Samplers by the names that people know."""

    EULER = "euler"
    EULER_A = "euler_a"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    DPMPP_SDE_KARRAS = "dpmpp_sde_karras"
    DDIM = "ddim"
    UNIPC = "unipc"
    LCM = "lcm"


LCM_MAX_STEPS = 50  # latent consistency models are distilled on 50 timesteps: LCMScheduler's original_inference_steps


class Fit(StrEnum):
    """How a reference of another aspect meets the requested size: cut what overhangs, or show all of it on white."""

    COVER = "cover"
    CONTAIN = "contain"


class JobMetadata(BaseModel):
    """What the worker reads of the free `metadata` column."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    fit: Fit = Fit.COVER
    private_metadata: bool = False


class Job(BaseModel):
    """What the worker reads of a job. The bounds repeat the database's constraints, for rows written around them."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    id: UUID
    user_id: UUID
    job_type: JobType
    claims: Annotated[int, Field(ge=1)]
    prompt: Annotated[str, Field(max_length=4000, repr=False)] = ""
    negative_prompt: Annotated[str, Field(max_length=4000, repr=False)] = ""
    negative_preset: Annotated[str, Field(repr=False)] = ""
    batch_size: Annotated[int, Field(ge=1, le=6)] = 1
    width: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] | None = None
    height: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] | None = None
    steps: Annotated[int, Field(ge=1, le=100)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    scheduler: Scheduler | None = None
    output_format: OutputFormat = OutputFormat.PNG
    reference_image_url: Annotated[str | None, Field(repr=False)] = None
    reference_image_path: str | None = None
    reference_strength: Annotated[float, Field(ge=0, le=1)] | None = None
    exact_copy_mode: bool = False
    enhance_prompt: bool = False
    fallback_to_text: bool = False
    metadata: JobMetadata = JobMetadata()

    @property
    def has_reference(self) -> bool:
        return self.reference_image_url is not None or self.reference_image_path is not None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Job:
        """Raises JobInvalid that names each bad column, never its value."""
        try:
            job = cls.model_validate(row)
        except ValidationError as error:
            faults = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors(include_input=False))
            message = f"This job cannot be painted: {faults}"
        else:
            if job.exact_copy_mode and not job.has_reference:
                message = "This job cannot be painted: exact_copy_mode needs a reference"
            elif not job.exact_copy_mode and not job.prompt.strip():
                message = "This job cannot be painted: prompt is required"
            elif job.scheduler is Scheduler.LCM and (job.steps or 0) > LCM_MAX_STEPS:
                message = f"This job cannot be painted: steps is at most {LCM_MAX_STEPS} with lcm"
            else:
                return job
        raise JobInvalid(user_message=message)
