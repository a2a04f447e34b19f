"""Tensors of a checkpoint's files, matched with the parameters of its models: each is used, known, or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ourvidz_sdxl.engine.checkpoint import read_header
from ourvidz_sdxl.engine.original_names import Source
from ourvidz_sdxl.engine.quantised import COMFY, check_comfy, check_dtype, companions, dequantised, scale_of
from ourvidz_sdxl.errors import ModelInvalid

EXTRAS = (  # tensors beside an SDXL's that painting does not need, as regular expressions
    r"(.*\.)?position_ids",  # a buffer of CLIP in transformers before 4.31
    r"conditioner\.embedders\.\d\.(model\.)?logit_scale",  # CLIP's temperature, for its training
    r"(text_encoders\.)?clip_[lg]\.logit_scale",
    # CLIP-L's projection, which SDXL does not read: ComfyUI saves it (comfy/sdxl_clip.py)
    r"(conditioner\.embedders\.0|clip_l|text_encoders\.clip_l)\.(transformer\.)?text_projection(\.weight)?",
    r"model_ema\..*|first_stage_model\.model_ema\..*",  # averages of the training: generative-models, modules/ema.py
    r"denoiser\.(sigmas|log_sigmas)",  # the noise schedule, a buffer: generative-models, modules/diffusionmodules/denoiser.py
    # buffers of the noise schedule: CompVis latent-diffusion, ldm/models/diffusion/ddpm.py
    r"betas|alphas_cumprod(_prev)?|sqrt_(recip(m1)?_)?(one_minus_)?alphas_cumprod|sqrt_recipm1_alphas_cumprod",
    r"log_one_minus_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])|logvar|lvlb_weights",
    r"v_pred|ztsnr",  # read by `prediction`
    r"loss\..*|first_stage_model\.loss\..*",  # discriminator and perceptual loss: generative-models, modules/autoencoding
    r"(.*\.)?scaled_fp8",  # marks a file with scales: ComfyUI, comfy/model_detection.py
)
FOLDER_EXTRAS = {  # beside a part's own, in a diffusers folder
    "text_encoder": r"text_projection\.weight",  # saved as CLIPTextModelWithProjection; SDXL does not read it
}


class StoredWeights:
    """Tensors in safetensors files, and which of them a model's parameters take: all but known extras must be taken."""

    def __init__(self, path: Path, files: Sequence[Path], part: str | None = None) -> None:
        """`files` have the tensors of a whole SDXL, or of one `part` of the diffusers folder at `path`."""
        self._path, self._files = path, files
        self._stored = {name: stored for file in files for name, stored in read_header(file).tensors.items()}
        self._extras = re.compile("|".join((*EXTRAS, *([FOLDER_EXTRAS[part]] if part in FOLDER_EXTRAS else []))))
        self._used: set[str] = set()

    def match(self, part: str, model: Any, sources: Mapping[str, Sequence[Source]]) -> dict[str, Source]:
        """The stored tensor of each parameter of `model`. Raises ModelInvalid for gaps, other shapes and other dtypes."""
        slots = model.state_dict()
        found = {slot: source for slot in slots for source in sources[slot][::-1] if source.name in self._stored}
        if absent := slots.keys() - found.keys():
            raise ModelInvalid(f"{self._path}: the {part} lacks {len(absent)} tensors, such as {min(absent)}")
        for slot, source in found.items():
            stored, expected = self._stored[source.name].shape, source.stored_shape(tuple(slots[slot].shape))
            if _squeezed(stored) != _squeezed(expected):
                shapes = f"{source.name} of the {part} is {[*stored]}, SDXL's is {[*expected]}"
                raise ModelInvalid(f"{self._path} could not be loaded: {shapes}")
            check_dtype(self._path, source.name, self._stored)
            self._used |= {source.name, *companions(source.name, self._stored)}
        return found

    def refuse_leftovers(self) -> None:
        """Raises ModelInvalid for a tensor that is no parameter's and not among the known extras."""
        if strange := sorted(name for name in self._stored.keys() - self._used if not self._extras.fullmatch(name)):
            raise ModelInvalid(
                f"{self._path} has {len(strange)} tensors that SDXL does not have, such as {strange[0]}: it is another model, "
                "or extended by what is not supported"
            )

    def load(self, part: str, model: Any, found: Mapping[str, Source], device: torch.device, dtype: torch.dtype) -> None:
        """Gives `model` its weights, tensor by tensor onto the device. Raises ModelInvalid for NaN and infinity.

        Of the UNet, whose tensors are most of a file, only vectors are looked through: that would cost seconds.
        """
        state: dict[str, Tensor] = {}
        finite: dict[str, Tensor] = {}
        for slot, parameter in model.state_dict().items():
            stored = found[slot].parameter(self._read(found[slot].name, device))
            state[slot] = stored.reshape(parameter.shape).to(device, dtype)
            if part != "unet" or stored.ndim < 2:
                finite[slot] = torch.stack(torch.aminmax(state[slot])).isfinite().all()  # 20 times as fast as looking at each
        if device.type != "meta" and not torch.stack([*finite.values()]).all():
            worst = next(slot for slot, is_finite in finite.items() if not is_finite)
            raise ModelInvalid(f"{self._path}: {found[worst].name} of the {part} has values that are not finite in {dtype}")
        model.load_state_dict(state, assign=True)
        model.to(device)  # for the buffers that no file holds, such as position ids

    @cached_property
    def _tensors(self) -> Mapping[str, Tensor]:
        """Memory-mapped: each is read from the disk when it is copied."""
        return {name: tensor for file in self._files for name, tensor in load_file(file).items()}

    def _read(self, name: str, device: torch.device) -> Tensor:
        tensor, scale = self._tensors[name], scale_of(name, self._stored)
        if (comfy := f"{name.removesuffix('.weight')}{COMFY}") in self._stored:
            check_comfy(self._path, comfy, bytes(self._tensors[comfy].to(torch.uint8).flatten().tolist()))
        return tensor if scale is None else dequantised(tensor.to(device), self._tensors[scale].to(device))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of 1 at its end: a 1 x 1 convolution has the weights of a linear layer."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
