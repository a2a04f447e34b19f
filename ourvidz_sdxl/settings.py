"""The worker's settings: read once from the environment, checked all together, secrets masked."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from ourvidz_sdxl.errors import SettingsInvalid
from ourvidz_sdxl.job import JobType
from ourvidz_sdxl.safety import ContentPolicy

# The owner's default checkpoint, on the volume that RunPod mounts at /workspace.
LUSTIFY = Path("/workspace/models/sdxl-lustify/lustifySDXLNSFWSFW_v20.safetensors")


def _worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


# What a variable was called before; still read.
OLDER_NAMES = {"supabase_service_role_key": "SUPABASE_SERVICE_KEY"}


class Settings(BaseModel):
    """Every setting, named in the environment by its upper-case name. `.env.example` explains each to the operator."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True, hide_input_in_errors=True)

    supabase_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+$")]
    supabase_service_role_key: SecretStr

    worker_id: Annotated[str, Field(default_factory=_worker_id, min_length=1, max_length=200)]
    target_worker: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = "sdxl"
    runpod_pod_id: Annotated[str, Field(max_length=200)] | None = None
    runpod_api_key: SecretStr | None = None
    runpod_rest_url: Annotated[str, Field(pattern=r"^https?://[^\s]+[^\s/]$")] = "https://api.runpod.io/v2"
    idle_exit_minutes: Annotated[float, Field(ge=0)] = 0
    job_types: tuple[JobType, ...] = (JobType.FAST, JobType.HIGH)

    model_path: Path = LUSTIFY
    model_url: Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=2048)] | None = None
    model_url_token: SecretStr | None = None
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    engine: Literal["auto", "fast", "reference"] = "auto"
    memory_limit_gb: Annotated[float, Field(ge=1)] = 10
    keep_weights: bool = True
    fp8: bool = False
    previews: bool = True
    model_retry_seconds: Annotated[float, Field(ge=0)] = 10
    max_concurrent_jobs: Annotated[int, Field(ge=1, le=16)] = 2
    prefetch_seconds: Annotated[float, Field(ge=0)] = 2
    step_timeout_seconds: Annotated[float, Field(ge=1)] = 120

    default_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    default_guidance: Annotated[float, Field(ge=0, le=30)] | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    fast_lora_path: Path | None = None
    fast_lora_steps: Annotated[int, Field(ge=2, le=16)] = 8  # those for one step want another schedule or prediction

    poll_interval_seconds: Annotated[float, Field(gt=0, le=3600)] = 2
    poll_interval_connected_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    lease_seconds: Annotated[int, Field(ge=10, le=3600)] = 60
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 15
    shutdown_grace_seconds: Annotated[float, Field(ge=0)] = 4  # RunPod kills 5 s after SIGTERM

    enhancer: Literal["off", "local", "http"] = "off"
    enhancer_timeout_seconds: Annotated[float, Field(gt=0)] = 10
    enhancer_model_path: Path | None = None
    enhancer_url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] = "http://127.0.0.1:8000/v1"
    enhancer_model: str = "Qwen/Qwen2.5-7B"
    enhancer_api_key: SecretStr | None = None

    content_policy: ContentPolicy = ContentPolicy.GENERAL
    image_check: str | None = None

    slow_generation_seconds: Annotated[float, Field(gt=0)] = 10
    low_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.7

    http_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = None  # 0: any free one, which the log names
    otel_exporter_otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("job_types", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value

    @field_validator("guidance_interval", mode="before")
    @classmethod
    def _two_shares(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            start, stop = map(float, value.split("-"))
        except ValueError:
            start = stop = 0
        if not start < stop <= 1:  # neither is below 0: a minus sign would have split it
            raise ValueError("this is not a part of the schedule: write two shares of its steps, such as 0.1-0.8")
        return start, stop

    @field_validator("supabase_url", mode="before")
    @classmethod
    def _no_slash(cls, value: object) -> object:
        return value.strip().rstrip("/") if isinstance(value, str) else value

    @field_validator("supabase_service_role_key", "enhancer_api_key", "runpod_api_key", "model_url_token")
    @classmethod
    def _fits_in_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]+", value.get_secret_value()):
            raise ValueError("this is not a key: it has spaces, or signs that no key has")  # HTTP libraries would quote it
        return value

    @field_validator("supabase_service_role_key")
    @classmethod
    def _not_a_client_key(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().startswith("sb_publishable_"):
            raise ValueError("this is the publishable key; the worker needs the secret one")
        return value

    @model_validator(mode="after")
    def _local_enhancer_has_a_model(self) -> Settings:
        if self.enhancer == "local" and self.enhancer_model_path is None:
            raise ValueError("ENHANCER=local needs ENHANCER_MODEL_PATH, a folder with Qwen2.5-7B")
        return self

    @model_validator(mode="after")
    def _what_is_fetched_can_be_checked(self) -> Settings:
        if self.model_url is None:
            return self
        if self.model_sha256 is None:
            raise ValueError("MODEL_URL needs MODEL_SHA256, so that what comes is what was meant")
        if self.model_path.suffix != ".safetensors":
            raise ValueError("MODEL_URL needs a MODEL_PATH that ends in .safetensors, the file that it is to become")
        if not (self.model_url.startswith("https://") or urlsplit(self.model_url).hostname in ("127.0.0.1", "localhost", "::1")):
            raise ValueError("MODEL_URL must be https")
        return self

    @property
    def heartbeat_seconds(self) -> float:
        """Four beats to a lease, so that three may get lost."""
        return self.lease_seconds / 4

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Parse `environ`; an empty value counts as absent.

        Raises SettingsInvalid that lists every mistake by the variable's name, without the values.
        """
        given = {}
        for name in cls.model_fields:
            value = environ.get(name.upper(), "").strip() or environ.get(OLDER_NAMES.get(name, ""), "").strip()
            if value:
                given[name] = value
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            lines = [f"  {': '.join([*(str(part).upper() for part in e['loc'][:1]), e['msg']])}" for e in error.errors()]
        raise SettingsInvalid("these settings are wrong or missing:\n" + "\n".join(lines))
