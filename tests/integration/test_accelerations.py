"""Guidance in a part of the schedule, and the few-step LoRA, in the plain engine with the bundled model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ourvidz_sdxl.engine import load_engine
from ourvidz_sdxl.engine.load import load_components
from ourvidz_sdxl.engine.schedulers import few_step_scheduler, new_scheduler
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.errors import JobCancelled, ModelMissing
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.plan import FewStep, I2IMode, Plan, make_plan

MODEL = Path(__file__).parents[2] / "models" / "tiny-sdxl"
USER = "22222222-2222-4222-8222-222222222222"
EDGE = 64
LORA = FewStep(lora="few", steps=8)
INTERVALS = {"beginning": (0.0, 0.4), "middle": (0.3, 0.8), "end": (0.6, 1.0), "nowhere": (0.0, 0.05)}


@pytest.fixture(scope="module")
def engine() -> SdxlEngine:
    return SdxlEngine.load(MODEL)


@pytest.fixture
def rows(engine: SdxlEngine) -> Iterator[list[int]]:
    """How many rows the UNet was given, call by call."""
    seen: list[int] = []
    hook = engine._parts.unet.conv_in.register_forward_pre_hook(lambda _layer, inputs: seen.append(len(inputs[0])))
    yield seen
    hook.remove()


def plan(interval: tuple[float, float] = (0, 1), *, few_step: FewStep | None = None, **columns: Any) -> Plan:
    row = {"id": uuid4(), "user_id": USER, "claims": 1, "job_type": "sdxl_image_high", "prompt": "a red circle", "seed": 1}
    return make_plan(
        Job.from_row(row | columns),
        native_size=EDGE,
        random_seed=0,
        reference_size=(EDGE, EDGE) if "reference_image_path" in columns else None,
        guidance_interval=interval,
        few_step=few_step,
    )


def no_step(_done: int, _total: int) -> None:
    pass


def reference() -> Image.Image:
    return Image.effect_mandelbrot((EDGE, EDGE), (-2, -1.5, 1, 1.5), 100).convert("RGB")


@torch.inference_mode()
def denoised(engine: SdxlEngine, asked: Plan, given: Image.Image | None) -> torch.Tensor:
    """What `engine` should make: a loop that asks for each prediction by itself, guided or not."""
    parts, scheduler = engine._parts, new_scheduler(asked.scheduler, engine._parts.scheduler_config)
    scheduler.set_timesteps(asked.steps)
    skipped = asked.steps - asked.painted_steps
    noise = randn_tensor((1, 4, EDGE // 8, EDGE // 8), generator=[torch.Generator().manual_seed(asked.seeds[0])])
    timesteps = scheduler.timesteps[skipped * scheduler.order :]
    if given is None:
        latents = noise * scheduler.init_noise_sigma
    else:
        scheduler.set_begin_index(skipped * scheduler.order)
        latents = scheduler.add_noise(engine._encode(given), noise, timesteps[:1])
    text = engine._text.encode(asked.prompt, asked.negative_prompt)
    first, last = (round(share * asked.steps) for share in asked.guidance_interval)

    def predicted(sign: str) -> torch.Tensor:
        conditions = {
            "text_embeds": text[f"{sign}pooled_prompt_embeds"],
            "time_ids": torch.tensor([[EDGE, EDGE, 0, 0, EDGE, EDGE]]),
        }
        given = scheduler.scale_model_input(latents, timestep)
        prediction: torch.Tensor = parts.unet(given, timestep, text[f"{sign}prompt_embeds"], added_cond_kwargs=conditions).sample
        return prediction

    for call, timestep in enumerate(timesteps):
        prediction = predicted("")
        if first <= skipped + call // scheduler.order < last:
            other = predicted("negative_")
            prediction = other + asked.guidance_scale * (prediction - other)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    result: torch.Tensor = latents
    return result


@pytest.mark.parametrize("ends", INTERVALS.values(), ids=INTERVALS)
@pytest.mark.parametrize(
    "columns", [{}, {"reference_image_path": f"{USER}/x.png", "reference_strength": 0.3}], ids=["text", "image"]
)
def test_guidance_is_on_in_the_interval_alone_and_costs_nothing_outside(
    engine: SdxlEngine, rows: list[int], ends: tuple[float, float], columns: dict[str, Any]
) -> None:
    asked = plan(ends, steps=10, negative_prompt="blue", **columns)
    given = reference() if columns else None
    with torch.inference_mode():
        latents = engine._denoise(asked, given, no_step)
    assert rows == [2 if step in asked.guided_steps else 1 for step in range(asked.painted_steps)]
    assert torch.allclose(latents, denoised(engine, asked, given), rtol=0, atol=1e-4)


def test_a_scheduler_with_two_predictions_a_step_is_guided_in_both() -> None:
    parts = load_components(MODEL, device="cpu")
    heun = SdxlEngine(
        replace(parts, scheduler_config={**parts.scheduler_config, "_class_name": "HeunDiscreteScheduler"}), torch.device("cpu")
    )
    asked = plan((0.4, 0.8), steps=5)
    with torch.inference_mode():
        assert torch.allclose(heun._denoise(asked, None, no_step), denoised(heun, asked, None), rtol=0, atol=1e-4)


def test_each_image_of_a_batch_is_the_one_it_is_alone(engine: SdxlEngine) -> None:
    asked = plan((0.3, 0.7), steps=6, batch_size=3)
    batch = engine.paint(asked, None, no_step)
    for seed, image in zip(asked.seeds, batch, strict=True):
        [alone] = engine.paint(replace(asked, seeds=(seed,)), None, no_step)
        assert np.abs(np.asarray(alone, dtype=int) - np.asarray(image)).max() <= 2


def test_the_next_job_is_guided_again_also_after_a_cancelled_one(engine: SdxlEngine) -> None:
    whole = plan(steps=4)
    [before] = engine.paint(whole, None, no_step)

    def cancel(_done: int, _total: int) -> None:
        raise JobCancelled

    with pytest.raises(JobCancelled):
        engine.paint(plan((0.5, 1), steps=4), None, cancel)
    assert engine.paint(whole, None, no_step) == [before]
    assert engine.paint(plan((0.5, 1), steps=4), None, no_step) != [before]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough of a LoRA to paint otherwise."""
    file = tmp_path_factory.mktemp("lora") / "few.safetensors"
    unet = load_components(MODEL, device="cpu").unet
    tensors = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith("to_out.0"):
            tensors[f"unet.{name}.lora_A.weight"] = (
                torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0)) / 4
            )
            tensors[f"unet.{name}.lora_B.weight"] = torch.ones(layer.out_features, 2) / 8
    save_file(tensors, file)
    return file


def test_a_fast_job_goes_through_few_steps_and_every_other_is_the_same_to_the_bit(engine: SdxlEngine, lora: Path) -> None:
    both = load_engine(MODEL, few_step_lora=lora)
    for columns in ({"job_type": "sdxl_image_high"}, {"job_type": "sdxl_image_fast", "steps": 6}):
        asked = plan(few_step=LORA, **columns)
        assert both.paint(asked, None, no_step) == engine.paint(asked, None, no_step)
    few = plan(few_step=LORA, job_type="sdxl_image_fast", negative_prompt="blue")
    told: list[tuple[int, int]] = []
    [image] = both.paint(few, None, lambda done, total: told.append((done, total)))
    assert told == [(step, 8) for step in range(1, 9)]
    [without] = engine.paint(replace(few, few_step_lora=None), None, no_step)
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(without)).max() > 10


@torch.inference_mode()
def test_few_steps_are_eulers_with_the_loras_unet_and_trailing_timesteps(lora: Path) -> None:
    both = SdxlEngine.load(MODEL, lora)
    unet, scheduler = both._few_step_unet, few_step_scheduler(both._parts.scheduler_config)
    assert unet is not None
    asked = plan(few_step=LORA, job_type="sdxl_image_fast")
    scheduler.set_timesteps(8)
    latents = randn_tensor((1, 4, EDGE // 8, EDGE // 8), generator=[torch.Generator().manual_seed(1)]) * scheduler.init_noise_sigma
    text = both._text.encode(asked.prompt, "")
    conditions = {"text_embeds": text["pooled_prompt_embeds"], "time_ids": torch.tensor([[EDGE, EDGE, 0, 0, EDGE, EDGE]])}
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(latents, timestep)
        prediction = unet(given, timestep, text["prompt_embeds"], added_cond_kwargs=conditions).sample
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    assert torch.allclose(both._denoise(asked, None, no_step), latents, rtol=0, atol=1e-4)


def test_a_reference_is_modified_in_few_steps_too(lora: Path) -> None:
    both = SdxlEngine.load(MODEL, lora)
    asked = plan(few_step=LORA, job_type="sdxl_image_fast", reference_image_path=f"{USER}/x.png", reference_strength=0.5)
    assert asked.mode is I2IMode.MODIFY
    told: list[tuple[int, int]] = []
    both.paint(asked, reference(), lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_lora_that_is_not_there_is_told_at_the_start_and_one_that_was_not_loaded_when_it_is_asked_for(engine: SdxlEngine) -> None:
    with pytest.raises(ModelMissing, match="nothing at"):
        load_engine(MODEL, few_step_lora=Path("/nowhere/few.safetensors"))
    with pytest.raises(ValueError, match="without a few-step LoRA"):
        engine.paint(plan(few_step=LORA, job_type="sdxl_image_fast"), None, no_step)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_few_steps_by_euler_are_those_of_ddim_with_the_same_timesteps(steps: int) -> None:
    config = load_components(MODEL, device="cpu").scheduler_config
    euler = few_step_scheduler({**config, "use_karras_sigmas": True, "timestep_spacing": "linspace"})
    ddim = diffusers.DDIMScheduler.from_config(dict(config), timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scheduler in (euler, ddim):
        scheduler.set_timesteps(steps)
    assert [*euler.timesteps.long()] == [*ddim.timesteps] == [round(1000 * left / steps) - 1 for left in range(steps, 0, -1)]
    first = euler.sigmas[0].double()
    ends = []
    for scheduler, latents in ((euler, noise * first), (ddim, noise * first / (first**2 + 1) ** 0.5)):
        for timestep in scheduler.timesteps:
            prediction = (3 * scheduler.scale_model_input(latents, timestep)).sin() + timestep / 1000
            step = scheduler.step(prediction, timestep, latents)
            latents = step.prev_sample
        ends.append(step.pred_original_sample)  # DDIM's last sample still has the least noise on it
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-3)
