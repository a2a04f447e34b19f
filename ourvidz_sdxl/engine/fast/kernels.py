"""What torch has no fast kernel for: each function with its reference in plain torch, which runs where there is no GPU or Triton.

Images are [rows, height, width, channels] and contiguous, tokens [rows, tokens, channels]: the same memory, which is what
`torch.channels_last` means, so nothing is ever copied between convolutions and transformers. Sums and statistics are in fp32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

# cuDNN's attention took 0.213 ms where flash took 0.338 (one H100, 4,096 tokens of 10 heads of 64). MATH is for the CPU.
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
TENSOR_CORE_CHANNELS = 8  # of sixteen bits; convolutions of fewer, or of no multiple, miss the tensor cores (cuDNN's guide)


@cache
def _triton() -> tuple[Any, Any] | None:
    try:
        from ourvidz_sdxl.engine.fast import triton_kernels, triton_products
    except ImportError:  # there is none for this machine
        return None
    return triton_kernels, triton_products


def _memory_bound(tensor: Tensor) -> Any:
    """The Triton kernels that move memory, or None where the reference has to do."""
    return found[0] if tensor.is_cuda and (found := _triton()) else None


def _products(tensor: Tensor) -> Any:
    """The Triton kernels that multiply matrices, or None."""
    return found[1] if tensor.is_cuda and (found := _triton()) else None


def compiled_ahead() -> AbstractContextManager[None]:
    """Within it, calls only have their kernels compiled, many at a time; what they return is garbage."""
    if _triton() is None:
        return nullcontext()
    from ourvidz_sdxl.engine.fast import triton_launch

    return triton_launch.compiled_ahead()


def group_norm(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    skip: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """GroupNorm of the image, with `skip`'s channels behind its own, after `offset` is added; then SiLU where asked for.

    `offset` is [p, channels], p a divisor of the rows: its line i belongs to the i-th p-th of them.
    """
    if fast := _memory_bound(image):
        norm: Any = fast.group_norm
    else:
        norm = group_norm_reference
    return norm(image, weight, bias, groups=groups, eps=eps, silu=silu, skip=skip, offset=offset)  # type: ignore[no-any-return]


def group_norm_reference(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    skip: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    whole = image if skip is None else torch.cat([image, skip], dim=-1)
    whole = whole.float()
    if offset is not None:
        whole = whole + offset.float().repeat_interleave(len(image) // len(offset), dim=0)[:, None, None]
    normal = functional.group_norm(whole.permute(0, 3, 1, 2), groups, weight.float(), bias.float(), eps)
    return (functional.silu(normal) if silu else normal).permute(0, 2, 3, 1).to(image.dtype).contiguous()


def layer_norm(
    stream: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    due: Tensor | None = None,
    fp8_scale: Tensor | None = None,
) -> Tensor:
    """LayerNorm of the tokens, after `offset` [channels] is added to each. What is still `due` is added onto the stream before.

    With `fp8_scale`, one number, the result is in FP8, that many times as large.
    """
    norm: Any = fast.layer_norm if (fast := _memory_bound(stream)) else layer_norm_reference
    return norm(stream, offset, weight, bias, eps=eps, due=due, fp8_scale=fp8_scale)  # type: ignore[no-any-return]


def layer_norm_reference(
    stream: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, *, eps: float, due: Tensor | None, fp8_scale: Tensor | None
) -> Tensor:
    if due is not None:
        stream += due
    whole = stream.float() + offset.float()
    normal = functional.layer_norm(whole, whole.shape[-1:], weight.float(), bias.float(), eps)
    return normal.to(stream.dtype) if fp8_scale is None else to_fp8(normal * fp8_scale)


def add(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    """`left` + `right` + a bias of the last dimension. The sum takes the place of `left`."""
    if fast := _memory_bound(left):
        return fast.add(left, right, bias)  # type: ignore[no-any-return]
    return add_reference(left, right, bias)


def add_reference(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    return (left.float() + right.float() + bias.float()).to(left.dtype)


def interleave_rows(weight: Tensor) -> Tensor:
    """[2 n, ...], first the values' rows and then the gates' -> the rows in turns, as `geglu` wants them."""
    values, gates = weight.chunk(2)
    return torch.stack([values, gates], dim=1).flatten(0, 1).contiguous()


def geglu(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer whose even outputs are multiplied by GELU (the exact one) of the odd outputs behind them."""
    if fast := _products(tokens):
        return fast.geglu(tokens, weight, bias)  # type: ignore[no-any-return]
    return geglu_reference(tokens, weight, bias)


def geglu_reference(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    both = functional.linear(tokens.float(), weight.float(), bias.float())
    return (both[..., 0::2] * functional.gelu(both[..., 1::2])).to(tokens.dtype)


def to_fp8(tensor: Tensor) -> Tensor:
    """Rounded; beyond the largest number of the format stands that."""
    return tensor.float().clamp(-FP8_MAX, FP8_MAX).to(FP8)


def fp8_linear(tokens: Tensor, weight: Tensor, token_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A linear layer of FP8 in `dtype`: tokens and weight are as many times too small as their scales say."""
    if tokens.is_cuda:
        flat = tokens.flatten(0, -2)
        product = torch._scaled_mm(flat, weight.T, token_scale, weight_scale, out_dtype=dtype, use_fast_accum=True)
        return product.view(*tokens.shape[:-1], -1)
    return (functional.linear(tokens.float(), weight.float()) * (token_scale * weight_scale)).to(dtype)


def geglu_fp8(tokens: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out_scales: Tensor) -> Tensor:
    """`geglu` of FP8, whose product is `scale` too small, in FP8: output i is `out_scales[i]` times as large."""
    if fast := _products(tokens):
        return fast.geglu_fp8(tokens, weight, bias, scale, out_scales)  # type: ignore[no-any-return]
    return geglu_fp8_reference(tokens, weight, bias, scale, out_scales)


def geglu_fp8_reference(tokens: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out_scales: Tensor) -> Tensor:
    both = functional.linear(tokens.float(), weight.float()) * scale + bias.float()
    return to_fp8(both[..., 0::2] * functional.gelu(both[..., 1::2]) * out_scales)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[rows, tokens, heads, channels of a head], in any strides -> [rows, tokens, channels]."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
    with sdpa_kernel(ATTENTION, set_priority=True):
        mixed = functional.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2)


def text_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attention` to the few tokens of a text, which is bound by memory: 7 µs where cuDNN took 11 (1,024 tokens, one H100)."""
    if fast := _products(queries):
        return fast.text_attention(queries, keys, values)  # type: ignore[no-any-return]
    return attention(queries, keys, values)


def softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the last dimension of fp32 [lines, keys], in `dtype`."""
    if fast := _memory_bound(scores):
        return fast.softmax(scores, dtype)  # type: ignore[no-any-return]
    return scores.softmax(-1).to(dtype)


def convolution(image: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 1) -> Tensor:
    """A convolution without a bias (cuDNN would add it in another pass); `weight` as `packed_convolution` leaves it."""
    return functional.conv2d(image.permute(0, 3, 1, 2), weight, None, stride, padding).permute(0, 2, 3, 1).contiguous()


def packed_convolution(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def filled_up(tensor: Tensor, dimension: int) -> Tensor:
    """Zeros behind `dimension`, up to a multiple of what the tensor cores take in a convolution."""
    lacking = -tensor.shape[dimension] % TENSOR_CORE_CHANNELS
    shape = [*tensor.shape]
    shape[dimension] = lacking
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dimension) if lacking else tensor


def upsampled_convolution(image: Tensor, folded: Tensor, bias: Tensor) -> Tensor:
    """Doubles both edges (nearest) and convolves 3 x 3, as one 2 x 2 convolution of the small image: 4/9 of the arithmetic.

    Each pixel of the small image becomes four, one in every corner; a corner sees only 2 x 2 different pixels in its 3 x 3.
    `folded` is [4 channels out, channels in, 2, 2] from `folded_upsampling`.
    """
    corners = convolution(image, folded)  # [rows, height + 1, width + 1, 4 channels]
    if fast := _memory_bound(image):
        return fast.join_corners(corners, bias)  # type: ignore[no-any-return]
    return join_corners_reference(corners, bias)


def folded_upsampling(weight: Tensor) -> Tensor:
    """The weights of the four corners, one behind the other: (top, left), (top, right), (bottom, left), (bottom, right)."""
    # Seen from a top corner, the upper line of the 3 is the pixel above and the other two are this pixel; below, the reverse.
    top, bottom = torch.tensor([[1, 0, 0], [0, 1, 1]]), torch.tensor([[1, 1, 0], [0, 0, 1]])
    sums = [(lines.to(weight), columns.to(weight)) for lines in (top, bottom) for columns in (top, bottom)]
    corners = [torch.einsum("ocij,yi,xj->ocyx", weight.float(), y.float(), x.float()) for y, x in sums]
    return packed_convolution(torch.cat(corners).to(weight.dtype))


def join_corners_reference(corners: Tensor, bias: Tensor) -> Tensor:
    """[rows, h + 1, w + 1, 4 c] -> [rows, 2 h, 2 w, c]. The bottom (right) corners of a pixel are one line (column) further on."""
    rows, height, width, _ = corners.shape
    quarters = corners.view(rows, height, width, 2, 2, -1)
    joined = corners.new_empty(rows, height - 1, 2, width - 1, 2, len(bias))
    for y in (0, 1):
        for x in (0, 1):
            joined[:, :, y, :, x] = quarters[:, y : height - 1 + y, x : width - 1 + x, y, x]
    return joined.flatten(3, 4).flatten(1, 2) + bias
