"""The names that people know samplers by -> diffusers' schedulers, made anew for every job."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers
import structlog
import torch

from ourvidz_sdxl.engine.configuration import SCHEDULER_CLASSES
from ourvidz_sdxl.engine.prediction import NO_SETTINGS, ScheduleSettings
from ourvidz_sdxl.errors import ModelInvalid
from ourvidz_sdxl.job import Scheduler

log = structlog.get_logger()

# Name -> class and what differs from the checkpoint's own configuration. The pairs follow diffusers' table of A1111's and
# k-diffusion's samplers (its documentation, API, Schedulers, Overview).
SCHEDULERS: Mapping[Scheduler, tuple[str, Mapping[str, Any]]] = {
    Scheduler.EULER: ("EulerDiscreteScheduler", {}),
    Scheduler.EULER_A: ("EulerAncestralDiscreteScheduler", {}),
    Scheduler.DPMPP_2M: ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    Scheduler.DPMPP_2M_KARRAS: (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    Scheduler.DPMPP_SDE_KARRAS: ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True, "lower_order_final": True}),
    Scheduler.DDIM: ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),  # as SDXL was trained
    Scheduler.UNIPC: ("UniPCMultistepScheduler", {}),
    Scheduler.LCM: ("LCMScheduler", {}),
}

# What a checkpoint's configuration says of its training; the rest is how to sample from it.
TRAINING = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)

# "Trailing" timesteps begin at the last training timestep, where the noise is that of the first latents. "Leading" ones, SDXL's
# own, begin at 1000 - 1000 / steps + 1, in few steps far below that noise level: one step is at timestep 1, which leaves noise as
# it is. Models for few steps are distilled on trailing timesteps (SDXL-Turbo's and SDXL-Lightning's model cards), and for others
# they are the sounder choice (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps Are Flawed", section 3.3).
TRAILING = {"timestep_spacing": "trailing"}
TRAILING_BELOW_STEPS = 5

# Classes that sample a zero terminal SNR at a finite noise level: they set the last cumulative alpha to 2**-24 (sigma 4096).
FINITE_ZERO_SNR = {
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
}


class ExactSteps:
    """Mixin for diffusers' schedulers (0.42.1): any number of steps from 1 on, exactly that many, counted from the first one."""

    config: Any
    timesteps: torch.Tensor
    sigmas: torch.Tensor

    def set_timesteps(self, num_inference_steps: int, *arguments: Any, **options: Any) -> None:
        if num_inference_steps < TRAILING_BELOW_STEPS:
            self.register_to_config(**TRAILING)  # type: ignore[attr-defined]
        if original_steps := self.config.get("original_inference_steps"):
            # LCM and TCD choose from the timesteps of their training, and raise ValueError for more steps than those
            options["original_inference_steps"] = max(num_inference_steps, original_steps)
        super().set_timesteps(num_inference_steps, *arguments, **options)  # type: ignore[misc]
        if len(self.timesteps) == num_inference_steps + 1 and self.timesteps[-1] == -1:
            # trailing timesteps of 61 steps are np.arange(1000, 0, -1000 / 61) - 1, which has 62 elements
            self.timesteps = self.timesteps[:-1]
            if hasattr(self, "sigmas"):
                self.sigmas = torch.cat([self.sigmas[:-2], self.sigmas[-1:]])
        if hasattr(self, "set_begin_index"):
            # Otherwise the first timestep is looked up, and of equal ones the second is taken: rounded, those of Karras sigmas
            # near 4096 are all the last training timestep. The scheduler would skip a sigma and run out of them at the end.
            self.set_begin_index(0)


@cache
def _exact(class_name: str) -> Any:
    """The class of that name with ExactSteps. Raises ModelInvalid for one that is not among SCHEDULER_CLASSES."""
    if class_name not in SCHEDULER_CLASSES:
        raise ModelInvalid(f"the checkpoint's scheduler is {class_name}, which cannot sample from an SDXL")
    return type(class_name, (ExactSteps, getattr(diffusers, class_name)), {})


def few_step_scheduler(config: Mapping[str, Any]) -> Any:
    """Euler on evenly spaced timesteps that begin at the last one, as few-step LoRAs were trained.

    SDXL-Lightning's model card asks for exactly that. Hyper-SD's asks for DDIM with the same timesteps, which is Euler in other
    variables (DDIM, Song et al. 2021, section 4.3); only its last step ends at the least noise instead of none.
    """
    return _exact("EulerDiscreteScheduler")(**_training(config), **TRAILING)


def new_scheduler(name: Scheduler | None, config: Mapping[str, Any]) -> Any:
    """A scheduler with the checkpoint's betas and prediction type; None is the checkpoint's own class.

    With a zero terminal SNR (`rescale_betas_zero_snr`) sampling begins at the last training timestep, where the image is noise
    alone (Lin et al. 2024, sections 3.1 and 3.3). Raises ModelInvalid for a class that cannot sample from an SDXL.
    """
    class_name, changes = (config["_class_name"], {}) if name is None else SCHEDULERS[name]
    if config.get("rescale_betas_zero_snr"):
        changes = {**changes, **TRAILING}
        if class_name not in FINITE_ZERO_SNR:
            changes |= {"trained_betas": finite_zero_snr_betas(config), "rescale_betas_zero_snr": False}
    return _exact(class_name).from_config(dict(config), **changes)


def log_overrides(config: Mapping[str, Any], settings: ScheduleSettings = NO_SETTINGS) -> None:
    """Log line, once for a loaded checkpoint, of what `new_scheduler` samples otherwise than its configuration and `settings` say.

    Without it an operator would look in vain for the effect of TIMESTEP_SPACING, or compare DDIM with diffusers' on other betas.
    """
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    spacing = settings.timestep_spacing
    if zero_snr or spacing not in (None, TRAILING["timestep_spacing"]):
        replaced = [name.value for name, (class_name, _) in SCHEDULERS.items() if class_name not in FINITE_ZERO_SNR]
        log.info(
            "schedule_overridden",
            timestep_spacing=spacing or config.get("timestep_spacing"),
            trailing="in any number of steps" if zero_snr else f"below {TRAILING_BELOW_STEPS} steps",
            zero_terminal_snr=zero_snr,
            finite_betas=replaced if zero_snr else [],
        )


def finite_zero_snr_betas(config: Mapping[str, Any]) -> list[float]:
    """The rescaled betas whose last cumulative alpha is Euler's 2**-24, for classes that know no rescaling or divide by its 0."""
    alphas_cumprod = diffusers.EulerDiscreteScheduler(**_training(config)).alphas_cumprod.double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / before).tolist()  # type: ignore[no-any-return]


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in TRAINING if name in config}
