"""A LoRA from a file, added to a copy of a UNet: W + alpha / rank · up · down (Hu et al. 2021, section 4.1).

The names are looked up in a table made from the UNet itself (`lora_names.layer_names`): diffusers' own conversions (0.42.1)
rewrite them by pattern, pass by what does not fit, and lose alphas of attention that differ.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path

import structlog
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ourvidz_sdxl.engine.checkpoint import check_lora, read_header
from ourvidz_sdxl.engine.configuration import is_number
from ourvidz_sdxl.engine.lora_names import layer_names, parse_key
from ourvidz_sdxl.errors import ModelInvalid

log = structlog.get_logger()

ADAPTER = "lora_adapter_metadata"  # diffusers' loaders/lora_base.py: PEFT's configuration as JSON, in the file's header
UNKNOWN_ADAPTER = ("alpha_pattern", "use_dora", "use_rslora", "lora_bias", "modules_to_save")  # would change the formula
ABOUT_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that change the weights below the LoRA (PEFT)
Parts = Mapping[str, Tensor]


def with_lora(unet: UNet2DConditionModel, path: Path) -> UNet2DConditionModel:
    """A UNet beside `unet`, with the LoRA of the file at `path`; `unet` stays as it is.

    What the LoRA leaves alone shares its memory. Sums are made in fp32 on the UNet's device and rounded once to its precision.
    Raises ModelMissing, or ModelInvalid for what is not a LoRA of this UNet alone. One that changes the text encoders, too, is
    refused: both UNets share them, and without that part it would not be what it was trained to be.
    """
    check_lora(path)
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise ModelInvalid(f"{path.name}: {key} has a NaN or infinity")
    alpha = _adapter_alpha(path, _adapter_config(path))
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
    names = layer_names(unet)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    strange, unknown = [], []
    for key, tensor in tensors.items():
        layer, part = parse_key(key) or (None, "")
        if layer is None:
            strange.append(key)
        elif layer not in names:
            unknown.append(key)
        elif part in layers[names[layer]]:
            raise ModelInvalid(f"{path.name} has {part} for {names[layer]} twice, the second time as {key}")
        else:
            layers[names[layer]][part] = tensor
    _refuse(path, strange, "of another kind than a LoRA's down, up and alpha")
    _refuse(path, unknown, "for layers that SDXL's UNet does not have")
    _refuse(path, [name for name, parts in layers.items() if not parts.keys() >= {"down", "up"}], "without the other half")
    return layers


def _adapter_config(path: Path) -> str:
    """PEFT's configuration: from the header, or from beside the file where PEFT itself saved it (`save_pretrained`)."""
    beside = path.with_name("adapter_config.json")
    if path.stem == "adapter_model" and beside.is_file():
        try:
            return beside.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelInvalid(f"{beside.name} beside {path.name} cannot be read: {type(error).__name__}") from error
    return read_header(path).metadata.get(ADAPTER, "{}")


def _adapter_alpha(path: Path, text: str) -> float | None:
    """PEFT's alpha for all layers; None where the file says nothing of it, which diffusers reads as the rank."""
    try:
        said = {key.removeprefix("unet."): value for key, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelInvalid(f"{path.name}: its {ADAPTER} is not a JSON object, and its alpha so unknown") from error
    unknown = [name for name in UNKNOWN_ADAPTER if said.get(name)]
    if str(said.get("init_lora_weights", "")).lower().startswith(ABOUT_BASE):
        unknown.append(f"init_lora_weights={said['init_lora_weights']}")
    if unknown:
        raise ModelInvalid(f"{path.name} was trained with {', '.join(unknown)}, which is not a plain LoRA")
    alpha = said.get("lora_alpha")
    if alpha is not None and not is_number(alpha):
        raise ModelInvalid(f"{path.name}: lora_alpha in its metadata is {alpha!r} and not a number")
    return alpha


def _check_shapes(path: Path, name: str, parts: Parts, weight: Tensor) -> None:
    down, up = parts["down"].shape, parts["up"].shape
    if min(len(down), len(up)) < 2 or not down[0] or ("alpha" in parts and parts["alpha"].numel() != 1):
        raise ModelInvalid(f"{path.name}: {name} has {[*down]} and {[*up]}, or an alpha that is not one number")
    kernels_fit = down[2:].numel() == weight.shape[2:].numel() and up[2:].numel() == 1
    if not kernels_fit or down[1] != weight.shape[1] or up[:2] != (len(weight), down[0]):
        raise ModelInvalid(
            f"{path.name}: {name} has {[*down]} and {[*up]} for a layer of {[*weight.shape]}; it is for another model than SDXL"
        )


def _refuse(path: Path, keys: Collection[str], why: str) -> None:
    if keys:
        raise ModelInvalid(f"{path.name} has {len(keys)} tensors {why}, such as {min(keys)}")
