"""Every scheduler alone, with random predictions in place of a UNet's: number of steps, first noise level, finite values."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from structlog.testing import capture_logs

from ourvidz_sdxl.engine.configuration import SCHEDULER_CLASSES
from ourvidz_sdxl.engine.prediction import ScheduleSettings, TimestepSpacing
from ourvidz_sdxl.engine.schedulers import few_step_scheduler, finite_zero_snr_betas, log_overrides, new_scheduler
from ourvidz_sdxl.errors import ModelInvalid
from ourvidz_sdxl.job import Scheduler
from ourvidz_sdxl.plan import painted_steps, schedule_steps

SDXL: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "ourvidz_sdxl" / "engine" / "sdxl_base" / "scheduler" / "scheduler_config.json").read_text()
)
V_PREDICTION = {"prediction_type": "v_prediction"}
ZERO_SNR = V_PREDICTION | {"rescale_betas_zero_snr": True}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "SDXL": SDXL,
    "v-prediction": SDXL | V_PREDICTION,
    "zero terminal SNR": SDXL | ZERO_SNR,
    "trailing": SDXL | {"timestep_spacing": "trailing"},
}
OWN = {kind: SDXL | {"_class_name": f"{kind}Scheduler"} for kind in ("LCM", "TCD", "PNDM", "HeunDiscrete", "DPMSolverMultistep")}
NAMES = [None, *Scheduler]
SHAPE = (2, 4, 2, 2)
# strengths of references: no reference, half, the least noise of that many steps, and a schedule lengthened for it
DENOISE = (1.0, 0.5, 0.05, 0.01)
SIGMA_MAX, ZERO_SNR_SIGMA_MAX = 14.6146, 4096.0


def sampled(scheduler: Any, steps: int, painted: int) -> list[torch.Tensor]:
    """The latents after each step, from noise or from a grey reference under the noise of the first painted step."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(steps)
    noise = torch.randn(SHAPE, generator=generator)
    timesteps = scheduler.timesteps[(steps - painted) * scheduler.order :]
    if painted == steps:
        latents = noise * scheduler.init_noise_sigma
    else:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index((steps - painted) * scheduler.order)
        latents = scheduler.add_noise(torch.full(SHAPE, 0.1), noise, timesteps[:1].repeat(len(noise)))
    accepted = inspect.signature(scheduler.step).parameters
    extra = {name: value for name, value in (("eta", 0.0), ("generator", generator)) if name in accepted}
    found = []
    for timestep in timesteps:
        assert torch.isfinite(scheduler.scale_model_input(latents, timestep)).all()
        prediction = torch.randn(SHAPE, generator=generator)
        latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
        found.append(latents)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_any_number_of_steps_of_any_strength_is_painted_as_planned_with_finite_values(
    config: dict[str, Any], name: Scheduler | None
) -> None:
    made = new_scheduler(name, config)
    for asked in (1, 2, 3, 4, 5, 7, 8, 15, 22, 25, 51, 61, 100):
        for denoise in DENOISE:
            steps = schedule_steps(asked, denoise)
            painted = painted_steps(steps, denoise)
            scheduler = type(made).from_config(made.config)  # a few steps change its configuration, as in a job's own
            found = sampled(scheduler, steps, painted)
            assert len(found) == painted, (steps, denoise)
            assert torch.isfinite(torch.stack(found)).all(), (steps, denoise)
            assert all(0 <= timestep <= 999 for timestep in scheduler.timesteps), (steps, denoise)


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_a_checkpoints_own_scheduler_of_another_class_gives_finite_values_in_any_number_of_steps(config: dict[str, Any]) -> None:
    for steps in (1, 2, 4, 5, 25, 51, 100):
        found = sampled(new_scheduler(None, config), steps, steps)
        assert torch.isfinite(torch.stack(found)).all()


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' KDPM2 and DEIS under NumPy 2
@pytest.mark.parametrize("class_name", sorted(SCHEDULER_CLASSES - {"DPMSolverSDEScheduler"}))  # that one needs torchsde
def test_every_class_that_the_check_accepts_samples(class_name: str) -> None:
    for config in (SDXL, SDXL | ZERO_SNR):
        for steps in (1, 2, 5):
            found = sampled(new_scheduler(None, config | {"_class_name": class_name}), steps, steps)
            assert torch.isfinite(torch.stack(found)).all(), steps


def first_sigma(scheduler: Any) -> float:
    """sqrt((1 - a) / a) for the cumulative alpha a of the first timestep (Karras et al. 2022, table 1)."""
    if hasattr(scheduler, "sigmas"):
        return float(scheduler.sigmas[0])
    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    return float(((1 - alpha) / alpha) ** 0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_few_steps_begin_at_the_noise_of_the_last_training_timestep(name: Scheduler | None, spacing: str) -> None:
    for steps in range(1, 5):
        scheduler = new_scheduler(name, SDXL | {"timestep_spacing": spacing})
        scheduler.set_timesteps(steps)
        assert int(scheduler.timesteps[0]) == 999
        assert first_sigma(scheduler) == pytest.approx(SIGMA_MAX, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_five_steps_and_more_are_spaced_as_the_checkpoint_says(name: Scheduler | None) -> None:
    for config in (SDXL, SDXL | {"timestep_spacing": "trailing"}):
        for steps in (5, 15, 25, 50):
            ours = new_scheduler(name, config)
            theirs: Any = getattr(diffusers, type(ours).__name__).from_config(ours.config)
            for scheduler in (ours, theirs):
                scheduler.set_timesteps(steps)
            assert ours.timesteps.tolist() == theirs.timesteps.tolist()
            for mine, its in zip(sampled(ours, steps, steps), sampled(theirs, steps, steps), strict=True):
                assert torch.equal(mine, its)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_a_zero_terminal_snr_is_sampled_from_the_last_timestep_on(name: Scheduler | None, spacing: str) -> None:
    for steps in (1, 4, 8, 25, 61, 100):
        scheduler = new_scheduler(name, SDXL | ZERO_SNR | {"timestep_spacing": spacing})
        scheduler.set_timesteps(min(steps, 50) if name is Scheduler.LCM else steps)
        assert int(scheduler.timesteps[0]) == 999
        assert first_sigma(scheduler) == pytest.approx(ZERO_SNR_SIGMA_MAX, rel=1e-3)
    alphas = scheduler.alphas_cumprod
    rescaled = new_scheduler(Scheduler.EULER, SDXL | ZERO_SNR).alphas_cumprod
    assert torch.allclose(alphas, rescaled, rtol=1e-4, atol=0), "its betas are the rescaled ones"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", [SDXL, SDXL | V_PREDICTION, SDXL | ZERO_SNR], ids=["epsilon", "v", "zero SNR"])
def test_the_true_prediction_leads_back_to_the_image_in_any_number_of_steps(name: Scheduler | None, config: dict[str, Any]) -> None:
    """A UNet that knows the image predicts x0 exactly: whatever the noise, the last step must arrive there."""
    image = torch.linspace(-1, 1, 32).reshape(SHAPE)
    for steps in (1, 2, 3, 4, 5, 25):
        scheduler = new_scheduler(name, config)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(steps)
        latents = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
        for index, timestep in enumerate(scheduler.timesteps):
            if hasattr(scheduler, "sigmas"):
                alpha = 1 / (float(scheduler.sigmas[index]) ** 2 + 1)
            else:
                alpha = float(scheduler.alphas_cumprod[int(timestep)])
            scaled = scheduler.scale_model_input(latents, timestep)  # sqrt(alpha) image + sqrt(1 - alpha) noise
            noise = (scaled - alpha**0.5 * image) / (1 - alpha) ** 0.5
            velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * image
            accepted = inspect.signature(scheduler.step).parameters
            extra = {"generator": generator} if "generator" in accepted else {}
            prediction = noise if config["prediction_type"] == "epsilon" else velocity
            latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
        # DDIM ends at the least noise of the training instead of none (set_alpha_to_one false): sigma 0.03
        # LCM weighs x0 against the sample by its boundary condition (c_out 0.99997 and more)
        assert torch.allclose(latents, image, rtol=0, atol=0.15 if name is Scheduler.DDIM else 2e-2), steps


def test_few_steps_of_a_lora_begin_at_a_zero_terminal_snr_too() -> None:
    scheduler = few_step_scheduler(SDXL | ZERO_SNR)
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999
    assert float(scheduler.sigmas[0]) == pytest.approx(ZERO_SNR_SIGMA_MAX)


def test_the_finite_betas_are_a_schedule_and_leave_the_checkpoints_own_configuration_alone() -> None:
    betas = finite_zero_snr_betas(SDXL | ZERO_SNR)
    assert len(betas) == 1000
    assert all(0 < beta < 1 for beta in betas)
    config = SDXL | ZERO_SNR
    new_scheduler(Scheduler.DPMPP_SDE_KARRAS, config)
    assert config == SDXL | ZERO_SNR


@pytest.mark.parametrize(
    ("checkpoint", "spacing", "expected"),
    [
        ({}, None, []),
        ({}, "trailing", []),
        (V_PREDICTION, "linspace", [("linspace", "below 5 steps", [])]),
        (ZERO_SNR, None, [("leading", "in any number of steps", ["dpmpp_sde_karras", "ddim", "lcm"])]),
        (ZERO_SNR, "linspace", [("linspace", "in any number of steps", ["dpmpp_sde_karras", "ddim", "lcm"])]),
    ],
)
def test_what_is_sampled_otherwise_than_the_operator_asked_for_is_logged(
    checkpoint: dict[str, Any], spacing: TimestepSpacing | None, expected: list[tuple[str, str, list[str]]]
) -> None:
    config = SDXL | checkpoint | ({"timestep_spacing": spacing} if spacing else {})
    with capture_logs() as logs:
        log_overrides(config, ScheduleSettings(timestep_spacing=spacing))
    assert {entry["event"] for entry in logs} <= {"schedule_overridden"}
    assert [(entry["timestep_spacing"], entry["trailing"], entry["finite_betas"]) for entry in logs] == expected


@pytest.mark.parametrize(
    "class_name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "SASolverScheduler", "AutoencoderKL"]
)
def test_a_class_that_cannot_sample_an_sdxl_is_refused_by_name(class_name: str) -> None:
    with pytest.raises(ModelInvalid, match=class_name):
        new_scheduler(None, SDXL | {"_class_name": class_name})
