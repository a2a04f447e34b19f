"""A LoRA from a file, added to a copy of a UNet: W + alpha / rank · up · down (Hu et al. 2021, section 4.1).

Three ways to name the layers are known: kohya's (`lora_unet_…lora_down.weight`) with diffusers' or with SDXL's original block
numbers, and PEFT's as diffusers saves it (`unet.….lora_A.weight`). The names are looked up in a table made from the UNet itself:
diffusers' own conversions (0.42.1) rewrite them by pattern, pass by what does not fit, and lose alphas of attention that differ.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import structlog
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from ourvidz_sdxl.engine.checkpoint import check_lora
from ourvidz_sdxl.engine.original_names import original_layer, unet_modules
from ourvidz_sdxl.errors import ModelInvalid

log = structlog.get_logger()

ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_A.weight": "down",
    ".lora_up.weight": "up",
    ".lora_B.weight": "up",
    ".alpha": "alpha",
}
TEXT_ENCODERS = ("lora_te", "text_encoder")  # how the names of their layers begin, with kohya and diffusers
ADAPTER = "lora_adapter_metadata"  # diffusers' loaders/lora_base.py: PEFT's configuration as JSON, in the file's header
UNKNOWN_ADAPTER = ("alpha_pattern", "use_dora", "use_rslora")  # what in it would change the formula
Parts = Mapping[str, Tensor]


def with_lora(unet: UNet2DConditionModel, path: Path) -> UNet2DConditionModel:
    """A UNet beside `unet`, with the LoRA of the file at `path`; `unet` stays as it is.

    What the LoRA leaves alone shares its memory. Sums are made in fp32 on the UNet's device and rounded once to its precision.
    Raises ModelMissing, or ModelInvalid for what is not a LoRA of this UNet alone. One that changes the text encoders, too, is
    refused: both UNets share them, and without that part it would not be what it was trained to be.
    """
    check_lora(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    alpha = _adapter_alpha(path, json.loads(metadata.get(ADAPTER, "{}")))
    layers = _by_layer(path, tensors, unet)
    weights = dict(unet.named_parameters())
    for name, parts in layers.items():
        _check_shapes(path, name, parts, weights[f"{name}.weight"])
    copies: dict[int, nn.Parameter] = {}  # what deepcopy takes instead of copying
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        data = _added(weight.data, layers[layer], alpha) if layer in layers else weight.data
        copies[id(weight)] = nn.Parameter(data, requires_grad=False)
    log.info("lora_added", lora=path.stem, layers=len(layers))
    return deepcopy(unet, copies)


def _added(weight: Tensor, parts: Parts, alpha: float | None) -> Tensor:
    """[out, in, …] + the product of [out, rank, …] and [rank, in, …]; a convolution's kernel is in `down`."""
    down, up = (parts[part].to(weight.device, torch.float32).flatten(1) for part in ("down", "up"))
    rank = len(down)
    alpha = float(parts["alpha"]) if "alpha" in parts else alpha if alpha is not None else rank
    return torch.addmm(weight.float().flatten(1), up, down, alpha=alpha / rank).view_as(weight).to(weight.dtype)


def _by_layer(path: Path, tensors: Parts, unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """diffusers' name of each layer -> its down, up and perhaps alpha."""
    if others := [key for key in tensors if key.startswith(TEXT_ENCODERS)]:
        raise ModelInvalid(f"{path.name} changes the text encoders, too ({len(others)} tensors); only the UNet's part can be used")
    names = layer_names(unet)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    strange, unknown = [], []
    for key, tensor in tensors.items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        name = key.removesuffix(ending).removeprefix("unet.") if ending else None
        if ending is None or name is None:
            strange.append(key)
        elif name not in names:
            unknown.append(key)
        else:
            layers[names[name]][ENDINGS[ending]] = tensor
    _refuse(path, strange, "of another kind than a LoRA's down, up and alpha")
    _refuse(path, unknown, "for layers that SDXL's UNet does not have")
    _refuse(path, [name for name, parts in layers.items() if not parts.keys() >= {"down", "up"}], "without the other half")
    return layers


def layer_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """Every name that a LoRA may have for a layer -> diffusers' own, which is also PEFT's."""
    modules = unet_modules(unet.config)
    names = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for known in (name, original_layer(name, modules)):
                names[f"lora_unet_{known.replace('.', '_')}"] = name
            names[name] = name
    return names


def _adapter_alpha(path: Path, adapter: Mapping[str, Any]) -> float | None:
    """PEFT's alpha for all layers; None where the file says nothing of it, which diffusers reads as the rank."""
    said = {key.removeprefix("unet."): value for key, value in adapter.items()}
    if unknown := [name for name in UNKNOWN_ADAPTER if said.get(name)]:
        raise ModelInvalid(f"{path.name} was trained with {', '.join(unknown)}, which is not a plain LoRA")
    return said.get("lora_alpha")


def _check_shapes(path: Path, name: str, parts: Parts, weight: Tensor) -> None:
    down, up = parts["down"].shape, parts["up"].shape
    kernels_fit = down[2:].numel() == weight.shape[2:].numel() and up[2:].numel() == 1
    if not kernels_fit or down[1] != weight.shape[1] or up[:2] != (len(weight), down[0]):
        raise ModelInvalid(
            f"{path.name}: {name} has {[*down]} and {[*up]} for a layer of {[*weight.shape]}; it is for another model than SDXL"
        )


def _refuse(path: Path, keys: Collection[str], why: str) -> None:
    if keys:
        raise ModelInvalid(f"{path.name} has {len(keys)} tensors {why}, such as {min(keys)}")
