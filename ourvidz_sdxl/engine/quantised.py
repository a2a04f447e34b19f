"""Weights that a file has in 8 bits with a scale, multiplied out; other quantisations by their names.

Beside `X.weight` (fp8 or int8) stands its scale: `X.scale_weight` (ComfyUI's `scaled_fp8` files),
`X.weight_scale` (ComfyUI's comfy_quant, comfy/quant_ops.py, and compressed-tensors) or
`X.weight_scale_inv` (DeepSeek's block-wise fp8; a factor in spite of its name). It is one number,
one for each output channel, or one for each block of a matrix. fp8 without a scale is a plain cast.
Scales of activations (`scale_input`, `input_scale`) matter only for multiplying in 8 bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ourvidz_sdxl.errors import ModelInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from ourvidz_sdxl.engine.checkpoint import Stored

SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv")
OF_ACTIVATIONS = (".scale_input", ".input_scale")
COMFY = ".comfy_quant"  # JSON as bytes: {"format": …}
COMFY_METADATA = "_quantization_metadata"  # the same for all layers, in the file's header
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2")  # those with a plain `weight_scale`
COMFY_OPTIONS = {"format", "full_precision_matrix_mult"}  # the second is about computing only
KINDS = {  # ending of a name -> the quantisation that it belongs to
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)": "bitsandbytes",
    r"\.(qweight|qzeros|g_idx)": "GPTQ or AWQ",
    r"\.(wscales|wzeros|smooth_factor|smooth_factor_orig|proj_down|proj_up|smooth)": "SVDQuant",
    r"\.(weight_scale_2|weight_global_scale|weight_packed)": "4-bit floats (NVFP4)",
    r"\._data|\.(weight|bias)\._scale|\.output_scale": "optimum-quanto",
    r"[._:](qdata|weight_qdata|tensor_impl.*)": "torchao",
    r"\.(weight_zero_point|weight_zp)": "an asymmetric quantisation",
    r"\.(SCB|weight_format)": "bitsandbytes in 8 bits",
}
UNSCALED_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
SCALED = {"F8_E4M3", "F8_E5M2", "I8"}


def refuse_unknown(path: Path, names: Iterable[str], metadata: Mapping[str, str]) -> None:
    """Raises ModelInvalid for tensors or metadata of a quantisation that is not read, by its name."""
    if told := metadata.get(COMFY_METADATA):
        try:
            layers = [*json.loads(told)["layers"].items()]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelInvalid(f"{path.name} is quantised with comfy_quant, and its metadata are unreadable: {error!r}") from error
        for layer, options in layers:
            check_comfy(path, layer, options)
    for name in names:
        for ending, kind in KINDS.items():
            if re.search(f"(?:{ending})$", name):
                raise ModelInvalid(f"{path.name} is quantised with {kind} ({name}), which is not read")


def check_dtype(path: Path, name: str, tensors: Mapping[str, Stored]) -> None:
    """Raises ModelInvalid for a weight that is no floating-point number and has no scale."""
    dtype, scale = tensors[name].dtype, scale_of(name, tensors)
    if dtype in UNSCALED_DTYPES and scale is None:
        return
    if scale is None or dtype not in UNSCALED_DTYPES | SCALED:
        raise ModelInvalid(f"{path.name} is quantised: {name} is {dtype} without a scale, which is not read")
    if tensors[scale].dtype not in ("F64", "F32", "F16", "BF16"):
        raise ModelInvalid(f"{path.name} is quantised: {scale} is {tensors[scale].dtype}, which is not read")
    if factors(tensors[name].shape, tensors[scale].shape) is None:
        shapes = f"{[*tensors[scale].shape]} for {[*tensors[name].shape]}"
        raise ModelInvalid(f"{path.name} is quantised: {scale} is {shapes}, which fits neither channels nor blocks")


def check_comfy(path: Path, name: str, options: bytes | Mapping[str, object]) -> None:
    """Raises ModelInvalid where the options of a layer (as JSON, in its `comfy_quant`) say another format than scaled fp8."""
    try:
        told = json.loads(options) if isinstance(options, bytes) else options
        kind, unknown = told["format"], sorted(told.keys() - COMFY_OPTIONS)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelInvalid(f"{path.name} is quantised with comfy_quant, and {name} is unreadable: {error!r}") from error
    if kind not in COMFY_FORMATS or unknown:
        extra = f" with {', '.join(unknown)}" if unknown else ""
        raise ModelInvalid(f"{path.name} is quantised with comfy_quant's {kind}{extra} ({name}), which is not read")


def scale_of(name: str, tensors: Mapping[str, Stored]) -> str | None:
    """The name of the scale that belongs to the tensor `name`."""
    layer = name.removesuffix(".weight")
    if layer == name:
        return None
    return next((f"{layer}{ending}" for ending in SCALES if f"{layer}{ending}" in tensors), None)


def companions(name: str, tensors: Mapping[str, Stored]) -> set[str]:
    """Tensors beside `name` that are understood with it."""
    layer = name.removesuffix(".weight")
    beside = {f"{layer}{ending}" for ending in (*OF_ACTIVATIONS, COMFY)} if layer != name else set()
    scale = scale_of(name, tensors)
    return beside | ({scale} if scale else set())


def factors(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...] | None:
    """Along each axis of a weight, how many neighbours share a factor; None where the scale does not fit."""
    if all(size == 1 for size in scale):
        return shape
    if len(scale) < len(shape) and scale[0] == shape[0] and all(size == 1 for size in scale[1:]):
        return (1, *shape[1:])  # one for each output channel, with or without axes of 1
    if len(scale) != len(shape) or any(size == 0 or of % size for of, size in zip(shape, scale, strict=True)):
        return None
    return tuple(of // size for of, size in zip(shape, scale, strict=True))


def dequantised(weight: Tensor, scale: Tensor) -> Tensor:
    """fp32 weight times its scale."""
    shared = factors(tuple(weight.shape), tuple(scale.shape))
    if shared is None:
        raise ValueError(f"a scale of {[*scale.shape]} for {[*weight.shape]}")
    spread = scale.float().reshape([of // block for of, block in zip(weight.shape, shared, strict=True)])
    for axis, block in enumerate(shared):
        if block < weight.shape[axis]:  # else one factor for the whole axis, which broadcasts
            spread = spread.repeat_interleave(block, axis)
    return weight.float() * spread
