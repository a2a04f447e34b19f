"""A row of `public.jobs`, parsed once and trusted afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from ourvidz_sdxl.errors import JobInvalid
from ourvidz_sdxl.prompts import is_blank

MAX_AREA = 2 * 1024 * 1024  # pixels

# Segments of the characters that Storage takes in the name of an object. The rules here repeat the database's constraints;
# tests/integration/test_job_constraints.py holds them together.
OBJECT_NAME = r"^[A-Za-z0-9_!.*'() &$=@;:+,?-]+(/[A-Za-z0-9_!.*'() &$=@;:+,?-]+)*$"
OWN_FOLDER = r"^((reference_images|sdxl_image_fast|sdxl_image_high)/)?{user_id}/[^/]"
DOT_SEGMENT = re.compile(r"(^|/)\.\.?(/|$)")

# A host, and no white space (Unicode's White_Space) or control character (Cc).
HTTPS = (
    r"^https://[^\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000/?#\\]"
    r"[^\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*$"
)
USER_NAME_OR_PORT = re.compile(r"^https://([^/?#\\]*@|(\[[^]]*\]|[^:/?#\\]*):(?!443([/?#\\]|$)))")

Side = Annotated[int, Field(ge=128, le=2048, multiple_of=64)]


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
    private_metadata: StrictBool = False


class Job(BaseModel):
    """Columns of a job that the worker reads. The bounds repeat the database's constraints, for rows written around them.

    A test compares both on generated rows.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    id: UUID
    user_id: UUID
    job_type: JobType
    claims: Annotated[int, Field(ge=1)]
    attempts: int = 1  # this one included
    max_attempts: int = 1
    prompt: Annotated[str, Field(max_length=4000, repr=False)] = ""
    negative_prompt: Annotated[str, Field(max_length=4000, repr=False)] = ""
    negative_preset: Annotated[str, Field(repr=False)] = ""
    batch_size: Literal[1, 3, 6] = 1
    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Field(ge=1, le=100)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    scheduler: Scheduler | None = None
    output_format: OutputFormat = OutputFormat.PNG
    reference_image_url: Annotated[str | None, Field(repr=False, max_length=2048, pattern=HTTPS)] = None
    reference_image_path: Annotated[str | None, Field(max_length=1024, pattern=OBJECT_NAME)] = None
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
            faults = [f"{e['loc'][0]}: {e['msg']}" for e in error.errors(include_input=False)]
        else:
            faults = list(job._faults())
            if not faults:
                return job
        raise JobInvalid(user_message=f"This job cannot be painted: {'; '.join(faults)}")

    def _faults(self) -> Iterator[str]:
        """Violations of the constraints that stand between columns or need more than a pattern."""
        if not self.exact_copy_mode and is_blank(self.prompt):
            yield "prompt is required"
        if self.exact_copy_mode and not self.has_reference:
            yield "exact_copy_mode needs a reference"
        if self.has_reference and not self.exact_copy_mode and self.reference_strength is None:
            yield "reference_strength is required with a reference"
        if (self.width is None) != (self.height is None):
            yield "width and height come together"
        if (self.width or 0) * (self.height or 0) > MAX_AREA:
            yield f"width times height is at most {MAX_AREA}"
        if self.scheduler is Scheduler.LCM and (self.steps or 0) > LCM_MAX_STEPS:
            yield f"steps is at most {LCM_MAX_STEPS} with lcm"
        if self.reference_image_url is not None and self.reference_image_path is not None:
            yield "reference_image_url and reference_image_path exclude each other"
        if USER_NAME_OR_PORT.match(self.reference_image_url or ""):
            yield "reference_image_url has a user name or a port other than 443"
        path = self.reference_image_path
        if path is not None and (not re.match(OWN_FOLDER.format(user_id=self.user_id), path) or DOT_SEGMENT.search(path)):
            yield "reference_image_path is not in the user's own folder"
