"""The fast engine: a job through the graphs. What it paints is what `SdxlEngine` paints, within rounding.

Noise is drawn as there: on the CPU, one generator an image, in the UNet's precision. Between steps, latents stay in fp32.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ourvidz_sdxl.engine import OnStep
from ourvidz_sdxl.engine.fast.graphs import Graphs, Step, StepShape
from ourvidz_sdxl.engine.fast.unet import FastUNet, unsupported
from ourvidz_sdxl.engine.fast.vae import FastDecoder, FastEncoder
from ourvidz_sdxl.engine.load import SDXL_BASE, Components, load_components
from ourvidz_sdxl.engine.schedulers import new_scheduler
from ourvidz_sdxl.engine.sdxl import SdxlEngine, named_faults
from ourvidz_sdxl.errors import ModelInvalid
from ourvidz_sdxl.job import Scheduler
from ourvidz_sdxl.plan import Plan

CAPABILITY = (9, 0)  # CUDA's number for Hopper, on which the kernels were measured; older GPUs take it with ENGINE=fast


def why_not_fast(model_path: Path) -> str | None:
    """What speaks against the fast path here and for this model, in words; None if nothing does. Reads configuration only."""
    if not torch.cuda.is_available():
        return "no CUDA"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return "not measured on this GPU"
    if find_spec("triton") is None:
        return "no Triton"
    config_path = (model_path if model_path.is_dir() else SDXL_BASE) / "unet" / "config.json"
    unknown = unsupported(json.loads(config_path.read_text())) if config_path.exists() else []
    return f"a UNet with {', '.join(unknown)}" if unknown else None


class FastEngine(SdxlEngine):
    def __init__(self, parts: Components, device: torch.device) -> None:
        """`parts` are on the CPU: the UNet's weights are taken over, and the VAE, best in fp32, stays there.

        It decodes again what fp16 made no picture of. Raises ModelInvalid for a UNet that is built otherwise than SDXL's.
        """
        if unknown := unsupported(parts.unet.config):
            raise ModelInvalid(f"the fast path knows no UNet with {', '.join(unknown)}; set ENGINE=reference")
        self._unet = FastUNet(parts.unet, device)
        for part in (parts.unet, parts.text_encoder, parts.text_encoder_2):  # the UNet is hollow: it only says where and in what
            part.to(device)
        super().__init__(parts, device)
        encoder = FastEncoder(parts.vae, parts.unet.dtype, device)
        decoder = FastDecoder(parts.vae, parts.unet.dtype, device)
        self._graphs = Graphs(self._unet, encoder, decoder)
        self._frugal = False
        self._schedulers: dict[Scheduler | None, Any] = {}
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the repacking left

    @classmethod
    def load(cls, model_path: Path) -> FastEngine:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if device.type == "cuda" else torch.float32

        def loaded() -> FastEngine:
            return cls(load_components(model_path, device="cpu", dtype=dtype, vae_dtype=torch.float32), device)

        return named_faults(loaded)

    @torch.inference_mode()
    def _paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep) -> list[Image.Image]:
        try:
            return self._painted(plan, reference, on_step)
        except torch.OutOfMemoryError:
            self._graphs.forget()
            raise

    def _paint_frugally(self, plan: Plan, reference: Image.Image | None, on_step: OnStep) -> list[Image.Image]:
        """Without graphs, which keep memory to themselves, and with diffusers' VAE, which knows tiles."""
        kept, self._graphs = self._graphs, self._graphs.uncaptured()
        kept.forget()
        torch.cuda.empty_cache()  # does nothing on the CPU
        self._frugal = True
        try:
            return super()._paint_frugally(plan, reference, on_step)
        finally:
            self._graphs, self._frugal = kept, False

    def _painted(self, plan: Plan, reference: Image.Image | None, on_step: OnStep) -> list[Image.Image]:
        latents = self._denoise(plan, reference, on_step)
        if self._frugal:
            return [self._decode(one) for one in latents]
        decode = self._graphs.decode(*latents.shape[-2:])
        results = []
        for one in latents:
            decode.latents.copy_(one[None])
            decode.replay()
            results.append([_to_host(tensor) for tensor in (decode.pixels, decode.sound)])
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return [
            Image.fromarray(pixels.numpy()) if sound else self._decode(one)
            for one, (pixels, sound) in zip(latents, results, strict=True)
        ]

    def _denoise(self, plan: Plan, reference: Image.Image | None, on_step: OnStep) -> Tensor:
        """fp32 latents [batch, 4, height / 8, width / 8]."""
        scheduler = self._new_scheduler(plan.scheduler)
        scheduler.set_timesteps(plan.steps)
        skipped = (plan.steps - plan.painted_steps) * scheduler.order
        timesteps = scheduler.timesteps[skipped:]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in plan.seeds]
        latents = self._first_latents(plan, reference, scheduler, skipped, generators)

        guided = plan.guidance_scale > 1
        euler = isinstance(scheduler, EulerDiscreteScheduler) and scheduler.config.prediction_type in ("epsilon", "v_prediction")
        text = self._text.encode(plan.prompt, plan.negative_prompt)
        embeds, pooled = (
            torch.cat([text[f"negative_{name}"], text[name]]) if guided else text[name]
            for name in ("prompt_embeds", "pooled_prompt_embeds")
        )
        batch, _, height, width = latents.shape
        step = self._graphs.step(
            StepShape(images=batch, height=height, width=width, tokens=embeds.shape[1], guided=guided, euler=euler)
        )
        sizes = torch.tensor([[plan.height, plan.width, 0, 0, plan.height, plan.width]] * len(embeds), device=self._device)
        step.texts.copy_(self._unet.texts(embeds))
        step.latents.copy_(latents)
        times = self._unet.times(timesteps.to(self._device), pooled, sizes)
        if euler:
            numbers = euler_numbers(scheduler, skipped, plan.guidance_scale).to(self._device)
            steps = self._euler_steps(step, times, numbers)
        else:
            step.numbers.copy_(torch.tensor([1.0, 0.0, 0.0, plan.guidance_scale]))
            steps = self._scheduler_steps(step, times, scheduler, timesteps, latents, generators)
        for _ in paced(steps, on_step, len(timesteps), self._device):
            pass
        return step.latents.clone()

    def _new_scheduler(self, name: Scheduler | None) -> Any:
        """A copy of one that was made before: diffusers takes 5 ms to make one, in which the GPU would have nothing to do."""
        if name not in self._schedulers:
            self._schedulers[name] = new_scheduler(name, self._parts.scheduler_config)
        return deepcopy(self._schedulers[name])

    def _first_latents(
        self, plan: Plan, reference: Image.Image | None, scheduler: Any, skipped: int, generators: list[torch.Generator]
    ) -> Tensor:
        """fp32 [batch, 4, height / 8, width / 8]: noise, or the reference under as much noise as the first painted step expects."""
        shape = (plan.batch_size, self._unet.latent_channels, *(edge // self._latent_scale for edge in (plan.height, plan.width)))
        noise: Tensor = randn_tensor(shape, generator=generators, device=self._device, dtype=self._unet.dtype).float()
        if reference is None:
            return noise * float(scheduler.init_noise_sigma)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        encode = self._graphs.encode(plan.height, plan.width)
        encode.pixels.copy_(torch.from_numpy(np.array(reference, dtype=np.float32) / 127.5 - 1))
        encode.replay()
        first_timestep = scheduler.timesteps[skipped : skipped + 1].repeat(plan.batch_size)
        return scheduler.add_noise(encode.latents.expand(shape), noise, first_timestep).float()  # type: ignore[no-any-return]

    def _euler_steps(self, step: Step, times: Tensor, numbers: Tensor) -> Iterator[None]:
        for times_now, numbers_now in zip(times, numbers, strict=True):
            step.times.copy_(times_now)
            step.numbers.copy_(numbers_now)
            step.replay()
            yield

    def _scheduler_steps(
        self, step: Step, times: Tensor, scheduler: Any, timesteps: Tensor, latents: Tensor, generators: Any
    ) -> Iterator[None]:
        """Any scheduler of diffusers, outside of the graph, in the UNet's precision as there: it draws its noise in that."""
        accepted = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (("eta", 0.0), ("generator", generators)) if name in accepted}
        latents = latents.to(self._unet.dtype)
        for times_now, timestep in zip(times, timesteps, strict=True):
            step.times.copy_(times_now)
            step.latents.copy_(scheduler.scale_model_input(latents, timestep))
            step.replay()
            prediction = step.prediction.to(self._unet.dtype)
            latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0].to(prediction.dtype)
            step.latents.copy_(latents)
            yield

    def _decode(self, latents: Tensor) -> Image.Image:
        """Once more by diffusers in fp32, where the fast decoder made no picture; then raises BlankImage."""
        self._parts.vae.to(self._device)
        try:
            return super()._decode(latents)
        finally:
            self._parts.vae.to("cpu")


def paced(steps: Iterator[None], on_step: OnStep, total: int, device: torch.device) -> Iterator[None]:
    """Reports each step when the GPU has done it, while the next is already waiting there: the GPU never waits for Python.

    So what `on_step` raises ends the painting one step late.
    """
    if device.type != "cuda":
        for done, _ in enumerate(steps, start=1):
            on_step(done, total)
            yield
        return
    before: torch.cuda.Event | None = None
    for launched, _ in enumerate(steps, start=1):
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        if before is not None:
            before.synchronize()
            on_step(launched - 1, total)
        before = event
        yield
    if before is not None:
        before.synchronize()
        on_step(total, total)


def euler_numbers(scheduler: Any, skipped: int, guidance_scale: float) -> Tensor:
    """[steps, 4], `Step.NUMBERS` for each step: what EulerDiscreteScheduler.step does without added noise, which is linear."""
    sigmas = scheduler.sigmas[skipped:].double()
    now, change = sigmas[:-1], sigmas.diff()
    input_scale = (now**2 + 1).rsqrt()
    if scheduler.config.prediction_type == "epsilon":
        columns = [input_scale, torch.ones_like(now), change]
    else:  # velocity: the derivative is x sigma / (sigma^2 + 1) + v / sqrt(sigma^2 + 1)
        columns = [input_scale, 1 + change * now * input_scale**2, change * input_scale]
    return torch.stack([*columns, torch.full_like(now, guidance_scale)], dim=1).float()


def _to_host(tensor: Tensor) -> Tensor:
    """A copy that is there once the stream has come so far."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)
