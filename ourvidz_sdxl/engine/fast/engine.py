"""The fast engine: a job through the graphs. What it paints is what `SdxlEngine` paints, within rounding.

Noise is drawn as there: on the CPU, one generator an image, in the UNet's precision. Between steps, latents stay in fp32.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ourvidz_sdxl.engine import DEFAULT_OPTIONS, FastOptions, OnStep
from ourvidz_sdxl.engine.checkpoint import check_lora, fingerprint, read_json
from ourvidz_sdxl.engine.configuration import CLIP_CONTEXT
from ourvidz_sdxl.engine.fast.graphs import Graphs, Step, StepShape
from ourvidz_sdxl.engine.fast.keep import kept_file, read_into, slots, write
from ourvidz_sdxl.engine.fast.unet import FastUNet, unsupported
from ourvidz_sdxl.engine.fast.vae import FastDecoder, FastEncoder
from ourvidz_sdxl.engine.load import SDXL_BASE, Components, fingerprint_of, load_components
from ourvidz_sdxl.engine.lora import with_lora
from ourvidz_sdxl.engine.prediction import NO_SETTINGS, ScheduleSettings
from ourvidz_sdxl.engine.preview import SoFar
from ourvidz_sdxl.engine.schedulers import few_step_scheduler, new_scheduler
from ourvidz_sdxl.engine.sdxl import SdxlEngine, named_faults
from ourvidz_sdxl.errors import ModelInvalid
from ourvidz_sdxl.job import Scheduler
from ourvidz_sdxl.plan import Plan

FP8_CAPABILITY = (8, 9)  # CUDA's number for Ada
log = structlog.get_logger()

BATCHES = (1, 3, 6)  # that a job may have
CAPABILITY = (9, 0)  # CUDA's number for Hopper, on which the kernels were measured; older GPUs take it with ENGINE=fast


def why_no_fp8() -> str | None:
    """As `why_not_fast`. On the CPU FP8 is imitated, slowly."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        return "the GPU is older than compute capability 8.9"
    return None


class NotKept(Exception):
    """The file has other weights than expected."""


def why_not_fast(model_path: Path) -> str | None:
    """Reason against the fast engine here and for this model, or None. Reads configuration only; raises ModelInvalid."""
    if not torch.cuda.is_available():
        return "no CUDA"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return "not measured on this GPU"
    if find_spec("triton") is None:
        return "no Triton"
    config_path = (model_path if model_path.is_dir() else SDXL_BASE) / "unet" / "config.json"
    unknown = unsupported(read_json(config_path)) if config_path.exists() else []
    return f"a UNet with {', '.join(unknown)}" if unknown else None


class FastEngine(SdxlEngine):
    def __init__(
        self,
        parts: Components,
        device: torch.device,
        few_step_unet: UNet2DConditionModel | None = None,
        options: FastOptions = DEFAULT_OPTIONS,
        kept: Path | None = None,
    ) -> None:
        """`parts` are on the CPU: the UNets' weights are taken over, and the VAE, best in fp32, stays there.

        It decodes again what fp16 made no picture of. With `kept`, UNets and text encoders are empty and come from that file.
        Raises ModelInvalid for a UNet that is built otherwise than SDXL's, and NotKept where the file is of no use.
        """
        if unknown := unsupported(parts.unet.config):
            raise ModelInvalid(f"the fast path knows no UNet with {', '.join(unknown)}; set ENGINE=reference")
        models = [unet for unet in (parts.unet, few_step_unet) if unet is not None]
        place = torch.device("meta") if kept else device
        self._unets = [FastUNet(model, place, fp8=options.fp8) for model in models]
        self._weights = {"unets": self._unets, "text_encoder": parts.text_encoder, "text_encoder_2": parts.text_encoder_2}
        if kept:
            if not read_into(slots(**self._weights), kept, device):
                raise NotKept
            for unet in self._unets:
                unet.device = device
        for model in models:
            model.to_empty(device=device)  # it only says where and in what
        for encoder in (parts.text_encoder, parts.text_encoder_2):
            encoder.to(device)
        super().__init__(parts, device, few_step_unet)
        encoder = FastEncoder(parts.vae, parts.unet.dtype, device)
        decoder = FastDecoder(parts.vae, parts.unet.dtype, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the repacking left
        limit = options.memory_limit_gb * 1e9
        self._graphs = Graphs(self._unets, encoder, decoder, beside=self._text.encoding, limit_bytes=limit)
        self._frugal = False
        if device.type == "cuda":
            self._proof_edge = self.native_size  # for that, kernels are compiled and graphs captured anyway
        self._schedulers: dict[tuple[str | None, Scheduler | None], Any] = {}
        self._unprepared = [*self._usual()]

    @classmethod
    def load(
        cls,
        model_path: Path,
        few_step_lora: Path | None = None,
        options: FastOptions = DEFAULT_OPTIONS,
        *,
        schedule: ScheduleSettings = NO_SETTINGS,
    ) -> FastEngine:
        return named_faults(cls._load, model_path, few_step_lora, options, schedule)

    @classmethod
    def _load(cls, model_path: Path, few_step_lora: Path | None, options: FastOptions, schedule: ScheduleSettings) -> FastEngine:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if device.type == "cuda" else torch.float32

        def load(kept: Path | None) -> FastEngine:
            empty = ("unet", "text_encoder", "text_encoder_2") if kept else ()
            parts = load_components(model_path, device="cpu", dtype=dtype, vae_dtype=torch.float32, empty=empty, schedule=schedule)
            return cls(parts, device, with_lora(parts.unet, few_step_lora) if few_step_lora else None, options, kept)

        if few_step_lora:
            check_lora(few_step_lora)
        lora = fingerprint([few_step_lora]) if few_step_lora else None
        file = kept_file(model_path, fingerprint_of(model_path), dtype, options.fp8, lora)
        try:
            engine = load(file if options.keep_weights and file.exists() else None)
            keep = options.keep_weights and not file.exists()
        except NotKept:
            log.warning("kept_weights_of_no_use", file=file.name)
            engine, keep = load(None), True
        engine.warm_up()
        engine.prove()
        if keep:  # what was proven
            threading.Thread(target=write, args=(slots(**engine._weights), file), name="keep", daemon=True).start()
        return engine

    def warm_up(self) -> bool:
        if self._unprepared:
            named_faults(torch.inference_mode()(self._unprepared.pop(0)))
        return bool(self._unprepared)

    def _usual(self) -> Iterator[Callable[[], object]]:
        """What any first job needs, a reference's encoding included; then the batches of the model's own size."""
        if self._device.type != "cuda":
            return
        edge = self.native_size // self._latent_scale
        euler = is_euler(new_scheduler(None, self._parts.scheduler_config))

        def first() -> None:
            self._text.encode("", "")
            captured(1)
            self._graphs.decode(edge, edge)
            _ = self._projection

        def captured(images: int) -> None:
            self._graphs.step(StepShape(images=images, height=edge, width=edge, tokens=CLIP_CONTEXT, guided=True, euler=euler))

        yield first
        for images in BATCHES[1:]:
            yield partial(captured, images)

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
        return self._decoded(self._denoise(plan, reference, on_step))

    def _decoded(self, latents: Tensor) -> list[Image.Image]:
        if self._frugal:
            return super()._decoded(latents)
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
        number = 1 if plan.few_step_lora else 0
        unet, scheduler = self._unets[number], self._new_scheduler(plan)
        scheduler.set_timesteps(plan.steps)
        skipped = (plan.steps - plan.painted_steps) * scheduler.order
        timesteps = scheduler.timesteps[skipped:]
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in plan.seeds]
        latents = self._first_latents(plan, reference, scheduler, skipped, generators)

        euler = is_euler(scheduler)
        text = self._text.encode(plan.prompt, plan.negative_prompt)
        names = ("prompt_embeds", "pooled_prompt_embeds")
        embeds, pooled = (
            torch.cat([text[f"negative_{name}"], text[name]] if plan.guided_steps else [text[name]]) for name in names
        )
        sizes = torch.tensor([[plan.height, plan.width, 0, 0, plan.height, plan.width]] * len(embeds), device=self._device)
        texts, times = unet.texts(embeds), unet.times(timesteps.to(self._device), pooled, sizes)

        def captured(guided: bool) -> Step:
            batch, _, height, width = latents.shape
            shape = StepShape(
                images=batch, height=height, width=width, tokens=embeds.shape[1], guided=guided, euler=euler, unet=number
            )
            step = self._graphs.step(shape)
            step.texts.copy_(texts[-len(step.texts) :])  # the prompt's own come last
            return step

        which = [index // scheduler.order in plan.guided_steps for index in range(len(timesteps))]
        by_guidance = {guided: captured(guided) for guided in set(which)}
        steps = [by_guidance[guided] for guided in which]
        if euler:
            numbers = euler_numbers(scheduler, skipped, plan.guidance_scale).to(self._device)
            denoising = self._euler_steps(steps, latents, times, numbers, scheduler.sigmas[skipped:].tolist())
        else:
            for step in by_guidance.values():
                step.numbers.copy_(torch.tensor([1.0, 0.0, 0.0, plan.guidance_scale]))
            denoising = self._scheduler_steps(steps, latents, times, scheduler, timesteps, generators)
        for _ in paced(denoising, on_step, len(timesteps), self._device):
            pass
        return steps[-1].latents.clone()

    def _new_scheduler(self, plan: Plan) -> Any:
        """A copy of one that was made before: diffusers takes 5 ms to make one, in which the GPU would have nothing to do."""
        key = (plan.few_step_lora, plan.scheduler)
        if key not in self._schedulers:
            config = self._parts.scheduler_config
            self._schedulers[key] = few_step_scheduler(config) if plan.few_step_lora else new_scheduler(plan.scheduler, config)
        return deepcopy(self._schedulers[key])

    def _first_latents(
        self, plan: Plan, reference: Image.Image | None, scheduler: Any, skipped: int, generators: list[torch.Generator]
    ) -> Tensor:
        """fp32 [batch, 4, height / 8, width / 8]: noise, or the reference under as much noise as the first painted step expects."""
        unet = self._unets[0]
        shape = (plan.batch_size, unet.latent_channels, *(edge // self._latent_scale for edge in (plan.height, plan.width)))
        noise: Tensor = randn_tensor(shape, generator=generators, device=self._device, dtype=unet.dtype).float()
        if reference is None:
            return noise * float(scheduler.init_noise_sigma)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        first_timestep = scheduler.timesteps[skipped : skipped + 1].repeat(plan.batch_size)
        return scheduler.add_noise(self._encode(reference).expand(shape), noise, first_timestep).float()  # type: ignore[no-any-return]

    def _encode(self, image: Image.Image) -> Tensor:
        """fp32 [1, 4, height / 8, width / 8], which the next call overwrites."""
        encode = self._graphs.encode(image.height, image.width)
        encode.pixels.copy_(torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1))
        encode.replay()
        return encode.latents

    def _euler_steps(
        self, steps: list[Step], latents: Tensor, times: Tensor, numbers: Tensor, sigmas: list[float]
    ) -> Iterator[None]:
        before = torch.empty_like(latents)
        for step, times_now, numbers_now, sigma, sigma_after in zip(steps, times, numbers, sigmas, sigmas[1:], strict=False):
            before.copy_(latents)
            self._so_far = SoFar(before=before, after=step.latents, sigma_before=sigma, sigma_after=sigma_after)
            if latents is not step.latents:
                step.latents.copy_(latents)
            step.times.copy_(times_now[-len(step.times) :])
            step.numbers.copy_(numbers_now)
            step.replay()
            latents = step.latents
            yield

    def _scheduler_steps(
        self, steps: list[Step], latents: Tensor, times: Tensor, scheduler: Any, timesteps: Tensor, generators: Any
    ) -> Iterator[None]:
        """Any scheduler of diffusers, outside of the graph, in the UNet's precision as there: it draws its noise in that."""
        accepted = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (("eta", 0.0), ("generator", generators)) if name in accepted}
        latents = latents.to(self._unets[0].dtype)
        for step, times_now, timestep in zip(steps, times, timesteps, strict=True):
            step.times.copy_(times_now[-len(step.times) :])
            step.latents.copy_(scheduler.scale_model_input(latents, timestep))
            step.replay()
            prediction = step.prediction.to(latents.dtype)
            latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0].to(prediction.dtype)
            step.latents.copy_(latents)
            self._so_far = SoFar(before=latents, after=latents)
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


def is_euler(scheduler: Any) -> bool:
    """Whether `euler_numbers` says what it does."""
    return isinstance(scheduler, EulerDiscreteScheduler) and scheduler.config.prediction_type in ("epsilon", "v_prediction")


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
