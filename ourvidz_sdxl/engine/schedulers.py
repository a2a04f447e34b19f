"""The names that people know samplers by -> diffusers' schedulers, made anew for every job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers

from ourvidz_sdxl.job import Scheduler

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


def few_step_scheduler(config: Mapping[str, Any]) -> Any:
    """Euler on evenly spaced timesteps that begin at the last one, as few-step LoRAs were trained.

    SDXL-Lightning's model card asks for exactly that. Hyper-SD's asks for DDIM with the same timesteps, which is Euler in other
    variables (DDIM, Song et al. 2021, section 4.3); only its last step ends at the least noise instead of none.
    """
    training = {name: config[name] for name in TRAINING if name in config}
    return diffusers.EulerDiscreteScheduler(**training, timestep_spacing="trailing")


def new_scheduler(name: Scheduler | None, config: Mapping[str, Any]) -> Any:
    """A scheduler with the checkpoint's betas and prediction type; None is the checkpoint's own."""
    class_name, changes = (config["_class_name"], {}) if name is None else SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(dict(config), **changes)
