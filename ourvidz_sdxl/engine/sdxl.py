"""SDXL through diffusers: the plain path, and the reference for every faster one.

Denoising is diffusers' own pipelines. Encoding a reference and decoding latents are done here, one image at a
time (that bounds the peak of memory) and in the VAE's own precision: SDXL's VAE overflows in fp16, and diffusers would move it to
fp32 and back on every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image

from ourvidz_sdxl.engine import EngineChoice, OnStep
from ourvidz_sdxl.engine.latents import LatentScale
from ourvidz_sdxl.engine.load import Components, load_components
from ourvidz_sdxl.engine.lora import with_lora
from ourvidz_sdxl.engine.prediction import NO_SETTINGS, ScheduleSettings
from ourvidz_sdxl.engine.preview import Projection, SoFar
from ourvidz_sdxl.engine.proof import (
    PROOF_EDGE,
    model_errors,
    proof_picture,
    proof_plans,
    require_finite,
    require_finite_weights,
)
from ourvidz_sdxl.engine.schedulers import few_step_scheduler, new_scheduler
from ourvidz_sdxl.engine.text import PromptEncoder
from ourvidz_sdxl.errors import BlankImage, GpuUnusable, ModelInvalid, OutOfMemory
from ourvidz_sdxl.job import Scheduler
from ourvidz_sdxl.plan import I2IMode, Plan

T = TypeVar("T")


class SdxlEngine:
    def __init__(self, parts: Components, device: torch.device, few_step_unet: UNet2DConditionModel | None = None) -> None:
        self._parts = parts
        self._device = device
        self._few_step_unet = few_step_unet
        self._text = PromptEncoder(parts, self._pipeline(StableDiffusionXLPipeline, None))
        self.choice = EngineChoice(kind="reference")
        self.model = parts.name
        self.model_hash = parts.fingerprint
        self.gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        self.vram_mb = torch.cuda.get_device_properties(device).total_memory >> 20 if device.type == "cuda" else None
        self._scale = LatentScale(parts.vae.config, device)
        self._latent_scale: int = 2 ** (len(parts.vae.config.block_out_channels) - 1)  # pixels to one latent, along an edge
        self.native_size: int = parts.unet.config.sample_size * self._latent_scale
        self._so_far: SoFar | None = None
        self._images = 0
        self._proofs = count(1)
        self._proof_edge = PROOF_EDGE

    @classmethod
    def load(cls, model_path: Path, few_step_lora: Path | None = None, *, schedule: ScheduleSettings = NO_SETTINGS) -> SdxlEngine:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def loaded() -> SdxlEngine:
            parts = load_components(model_path, device=device, schedule=schedule)
            return cls(parts, device, with_lora(parts.unet, few_step_lora) if few_step_lora else None)

        engine = named_faults(loaded)
        engine.prove()
        return engine

    def warm_up(self) -> bool:
        return False  # nothing of diffusers' gets faster by it

    def prove(self) -> None:
        with model_errors(self.model):
            named_faults(self._prove)

    @torch.inference_mode()
    def _prove(self) -> None:
        for part in ("text_encoder", "text_encoder_2", "vae"):
            require_finite_weights(part, getattr(self._parts, part))
        prompt = f"proof {next(self._proofs)}"  # another one each time: prompts that were encoded before come from a cache
        require_finite("the text encoders", *self._text.encode(prompt, "").values())
        latents = self._encode(proof_picture(self._proof_edge))
        require_finite("the VAE's encoder", latents)
        try:
            self._decoded(latents)
        except BlankImage as error:
            raise ModelInvalid(f"the VAE's decoder gives no picture: {error}") from None
        try:
            for part, plan in proof_plans(self._proof_edge, few_step=self._few_step_unet is not None):
                require_finite(part, self._denoise(replace(plan, prompt=prompt), None, lambda _done, _total: None))
        finally:
            self._so_far = None

    def encode_prompts(self, plan: Plan) -> None:
        @torch.inference_mode()
        def encode() -> None:
            try:
                self._text.encode_ahead(plan.prompt, plan.negative_prompt)
            except torch.OutOfMemoryError:
                return  # nothing is freed here: another job paints, and what this one lacks is for `paint` to find

        named_faults(encode)

    def paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep, *, frugal: bool = False) -> list[Image.Image]:
        if plan.few_step_lora and not self._few_step_unet:
            raise ValueError("this engine was loaded without a few-step LoRA")
        if plan.mode is not I2IMode.NONE:
            if reference is None or reference.size != (plan.width, plan.height):
                raise ValueError("image-to-image needs a reference of the plan's size")
            if plan.painted_steps == 0:
                return [reference.copy() for _ in plan.seeds]
            if plan.painted_steps == plan.steps:
                reference = None  # noise alone: a reference under all of a schedule's noise would still show through
        self._images = plan.batch_size
        try:
            return named_faults(self._paint_frugally if frugal else self._paint, plan, reference, on_step)
        finally:
            self._so_far = None

    @cached_property
    def _projection(self) -> Projection:
        return Projection(self._encode, self.native_size)

    def preview(self, index: int) -> Image.Image | None:
        if self._so_far is None or len(self._so_far.after) != self._images:  # painted one by one
            return None
        return self._projection(self._so_far.expected(index))

    @torch.inference_mode()
    def _paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep) -> list[Image.Image]:
        return self._decoded(self._denoise(plan, reference, on_step))

    def _decoded(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents [batch, 4, h, w] -> images of 8 h x 8 w pixels. Raises BlankImage."""
        return [self._decode(one) for one in latents]

    def _paint_frugally(self, plan: Plan, reference: Image.Image | None, on_step: OnStep) -> list[Image.Image]:
        vae, images = self._parts.vae, []
        vae.enable_tiling()
        # diffusers' tiles are as large as the model's own pictures; half an edge is a quarter of the memory
        vae.tile_sample_min_size = self.native_size // 2
        vae.tile_latent_min_size = vae.tile_sample_min_size // self._latent_scale
        try:
            for index, seed in enumerate(plan.seeds):
                self._so_far = None
                images += self._paint(replace(plan, seeds=(seed,)), reference, counted_on(on_step, index, plan.batch_size))
        finally:
            vae.disable_tiling()
        return images

    def reserved_vram_mb(self) -> int | None:
        return torch.cuda.memory_reserved(self._device) >> 20 if self._device.type == "cuda" else None

    def peak_vram_mb(self) -> int | None:
        if self._device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self._device) >> 20
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def _denoise(self, plan: Plan, reference: Image.Image | None, on_step: OnStep) -> Any:
        """Latents [batch, 4, height / 8, width / 8] in the UNet's precision."""

        def after_step(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            before, after = self._so_far.after if self._so_far else None, tensors["latents"]
            sigma_before = sigma_after = None
            if before is not None and isinstance(pipeline.scheduler, EulerDiscreteScheduler):
                index = pipeline.scheduler.step_index  # of the next step
                sigma_before, sigma_after = (float(sigma) for sigma in pipeline.scheduler.sigmas[index - 1 : index + 1])
            self._so_far = SoFar(
                before=after if before is None else before, after=after, sigma_before=sigma_before, sigma_after=sigma_after
            )
            skipped = (plan.steps - plan.painted_steps) * pipeline.scheduler.order
            on_step(step + 1, len(pipeline.scheduler.timesteps) - skipped)
            return tensors

        arguments: dict[str, Any] = {
            **self._text.encode(plan.prompt, plan.negative_prompt),
            "num_images_per_prompt": plan.batch_size,
            "num_inference_steps": plan.steps,
            "guidance_scale": plan.guidance_scale,
            # noise is drawn on the CPU, one generator an image: a seed gives the same picture on every machine and in every batch
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in plan.seeds],
            "output_type": "latent",
            "callback_on_step_end": after_step,
        }
        if reference is None:
            kind = StableDiffusionXLPipeline
            arguments |= {"width": plan.width, "height": plan.height}
        else:
            kind = StableDiffusionXLImg2ImgPipeline
            # diffusers paints int(steps * strength) steps: half a step more keeps that clear of the rounding of binary fractions
            arguments |= {"image": self._encode(reference), "strength": (plan.painted_steps + 0.5) / plan.steps}
        pipeline = self._pipeline(kind, plan.scheduler, few_step=plan.few_step_lora is not None)
        with guided_only(pipeline.unet, plan, calls_a_step=pipeline.scheduler.order):
            return pipeline(**arguments).images

    def _pipeline(self, kind: type[Any], scheduler: Scheduler | None, *, few_step: bool = False) -> Any:
        """A pipeline for one job, with a scheduler of its own: schedulers carry state from step to step."""
        parts, config = self._parts, self._parts.scheduler_config
        pipeline = kind(
            vae=parts.vae,
            text_encoder=parts.text_encoder,
            text_encoder_2=parts.text_encoder_2,
            tokenizer=parts.tokenizer,
            tokenizer_2=parts.tokenizer_2,
            unet=self._few_step_unet if few_step else parts.unet,
            scheduler=few_step_scheduler(config) if few_step else new_scheduler(scheduler, config),
            force_zeros_for_empty_prompt=parts.force_zeros_for_empty_prompt,
            add_watermarker=False,  # diffusers would add one whenever a certain package happens to be installed
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _encode(self, image: Image.Image) -> Any:
        """An RGB image -> its latents [1, 4, height / 8, width / 8]: the mode of the posterior, so that it needs no seed."""
        vae = self._parts.vae
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        raw = vae.encode(pixels.to(self._device, vae.dtype)).latent_dist.mode()
        return self._scale.to_unet(raw).to(self._parts.unet.dtype)

    def _decode(self, latents: torch.Tensor) -> Image.Image:
        """Latents [4, h, w] -> an RGB image of 8 h x 8 w pixels. A blank one is decoded again in fp32; then raises BlankImage."""
        vae = self._parts.vae
        pixels = self._pixels(latents)
        if is_blank(pixels) and vae.dtype is not torch.float32:
            working_dtype = vae.dtype
            vae.float()
            try:
                pixels = self._pixels(latents)
            finally:
                vae.to(working_dtype)
        if is_blank(pixels):
            raise BlankImage
        as_bytes = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(as_bytes.permute(1, 2, 0).cpu().numpy())

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [4, h, w] -> fp32 pixels [3, 8 h, 8 w] around -1..1."""
        vae = self._parts.vae
        raw = self._scale.to_vae(latents[None]).to(vae.dtype)
        return vae.decode(raw, return_dict=False)[0][0].float()  # type: ignore[no-any-return]


@contextmanager
def guided_only(unet: Any, plan: Plan, *, calls_a_step: int) -> Iterator[None]:
    """Within it, `unet` computes both predictions for `plan.guided_steps` and the conditional one alone for the other steps.

    It then returns that for both, which makes guidance between them do nothing. diffusers' pipelines (0.42.1) lay out their inputs
    for guidance before the first step, and their callback, which could change them, comes after it.
    """
    both, calls = unet.forward, count()

    def forward(
        latents: Any, timestep: Any, *, encoder_hidden_states: Any, added_cond_kwargs: dict[str, Any], **options: Any
    ) -> Any:
        guided = next(calls) // calls_a_step in plan.guided_steps
        conditional = slice(0 if guided else len(latents) // 2, None)  # the unconditional rows come first
        (prediction,) = both(
            latents[conditional],
            timestep,
            encoder_hidden_states=encoder_hidden_states[conditional],
            added_cond_kwargs={name: tensor[conditional] for name, tensor in added_cond_kwargs.items()},
            **options,
        )
        return (prediction if guided else torch.cat([prediction, prediction]),)

    if plan.guidance_scale > 1 and len(plan.guided_steps) < plan.painted_steps:
        unet.forward = forward
    try:
        yield
    finally:
        unet.__dict__.pop("forward", None)


def counted_on(on_step: OnStep, index: int, batch_size: int) -> OnStep:
    """For image `index` of a batch that is painted one by one: its steps as a share of all."""
    return lambda done, total: on_step(index * total + done, batch_size * total)


def is_blank(pixels: torch.Tensor) -> bool:
    """Not a number anywhere, or black everywhere: what an overflow in the VAE leaves behind."""
    return not bool(torch.isfinite(pixels).all()) or bool((pixels <= -1).all())


def named_faults(call: Callable[..., T], *arguments: Any) -> T:
    """Makes the call, and gives the driver's faults their names in the error tree.

    The new error is raised when the `except` block is left and the old one forgotten: its traceback holds the failed job's tensors.
    """
    try:
        return call(*arguments)
    except torch.OutOfMemoryError as error:
        fault: OutOfMemory | GpuUnusable = OutOfMemory(str(error).partition("\n")[0])
    except torch.AcceleratorError as error:
        fault = GpuUnusable(str(error).partition("\n")[0])
    if isinstance(fault, OutOfMemory):
        torch.cuda.empty_cache()  # what the job left in pieces; does nothing on the CPU
    raise fault
