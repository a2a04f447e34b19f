"""The memory-bound functions of `kernels` as Triton kernels; what each computes is said there. Tuned on an H100.

Sizes that differ from layer to layer are arguments and not constants, and Triton is told not to look at their values where no
access gets wider by them, so that few variants have to be compiled.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ourvidz_sdxl.engine.fast.triton_launch import launch

TILE = 4096  # elements that a program holds at a time: 32 a thread, in whole lines of at least 128 bytes
WARPS = 4
WIDEST = 256  # channels of a tile
PROGRAMS = 528  # four for each of an H100's 132 multiprocessors: all run at once, and none waits for a second turn
ADD_TILE, ADD_WARPS = 8192, 8
LARGEST_GROUP = 128  # channels of a GroupNorm's group, rounded up: SDXL's 4 to 80 are one kernel then


def power_of_two_in(number: int, most: int) -> int:
    """The largest power of two that divides the number, up to `most`."""
    return min(number & -number, most)


@triton.jit
def _load_either(image, skip, pixel, block, inside, C1, C2, SKIP: tl.constexpr, CB: tl.constexpr):
    """[pixels, CB] of the image's channels, or of the skip connection's behind them: a block never has some of both."""
    channel = block * CB + tl.arange(0, CB)[None, :]
    if SKIP:
        tile = tl.load(image + pixel * C1 + channel, mask=inside & (block * CB < C1), other=0.0).to(tl.float32)
        tile += tl.load(skip + pixel * C2 + channel - C1, mask=inside & (block * CB >= C1), other=0.0).to(tl.float32)
    else:
        tile = tl.load(image + pixel * C1 + channel, mask=inside, other=0.0).to(tl.float32)
    return tile


@triton.jit(do_not_specialize=["PIXELS", "CHUNK"])
def _channel_sums(image, skip, sums, PIXELS, CHUNK, C1, C2, SKIP: tl.constexpr, CB: tl.constexpr, P: tl.constexpr):
    """Sums and sums of squares of CB channels over CHUNK pixels of one row -> sums[2, row, chunk, channel]."""
    chunk, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    total = tl.zeros((P, CB), tl.float32)
    squares = tl.zeros((P, CB), tl.float32)
    end = tl.minimum((chunk + 1) * CHUNK, PIXELS)
    for start in range(chunk * CHUNK, end, P):
        pixel = (start + tl.arange(0, P))[:, None]
        tile = _load_either(image, skip, n.to(tl.int64) * PIXELS + pixel, block, pixel < end, C1, C2, SKIP, CB)
        total += tile
        squares += tile * tile
    at = sums + (n * tl.num_programs(0) + chunk) * (C1 + C2) + block * CB + tl.arange(0, CB)
    tl.store(at, tl.sum(total, axis=0))
    tl.store(at + tl.num_programs(2) * tl.num_programs(0) * (C1 + C2), tl.sum(squares, axis=0))


@triton.jit(do_not_specialize=["PIXELS", "CHUNKS", "C", "GS", "OFFSET_LINE", "REPEAT"])
def _group_affine(
    sums, offset, weight, bias, affine, PIXELS, CHUNKS, C, GS, OFFSET_LINE, REPEAT, EPS,
    OFFSET: tl.constexpr, GSP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of a group of a row -> affine[2, row, channel]: gain and shift that normalise; offset, weight and bias included."""
    group, n, rows = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    channel, real = group * GS + tl.arange(0, GSP), tl.arange(0, GSP) < GS
    total = tl.zeros((BLOCK, GSP), tl.float32)
    squares = tl.zeros((BLOCK, GSP), tl.float32)
    for start in range(0, CHUNKS, BLOCK):
        chunk = (start + tl.arange(0, BLOCK))[:, None]
        at = sums + (n * CHUNKS + chunk) * C + channel[None, :]
        total += tl.load(at, mask=(chunk < CHUNKS) & real[None, :], other=0.0)
        squares += tl.load(at + rows * CHUNKS * C, mask=(chunk < CHUNKS) & real[None, :], other=0.0)
    channel_total, channel_squares = tl.sum(total, axis=0), tl.sum(squares, axis=0)
    moved = tl.zeros((GSP,), tl.float32)
    pixels = PIXELS * 1.0  # 1 is a constant of the compiler's, and not a tensor
    if OFFSET:  # the offset is the same for all pixels: the sums after it follow from those before it
        moved = tl.load(offset + (n // REPEAT) * OFFSET_LINE + channel, mask=real, other=0.0).to(tl.float32)
        channel_squares += moved * (2 * channel_total + pixels * moved)
        channel_total += pixels * moved
    mean = tl.sum(channel_total) / (pixels * GS)
    variance = tl.maximum(tl.sum(channel_squares) / (pixels * GS) - mean * mean, 0.0)
    gain = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32) * tl.rsqrt(variance + EPS)
    shift = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32) + (moved - mean) * gain
    tl.store(affine + n * C + channel, gain, mask=real)
    tl.store(affine + (rows + n) * C + channel, shift, mask=real)


@triton.jit(do_not_specialize=["PIXELS"])
def _apply_affine(
    image, skip, affine, out, PIXELS, C1, C2,
    SKIP: tl.constexpr, CB: tl.constexpr, P: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    block, n = tl.program_id(1), tl.program_id(2)
    pixel = (tl.program_id(0) * P + tl.arange(0, P))[:, None]
    inside = pixel < PIXELS
    channel = block * CB + tl.arange(0, CB)
    tile = _load_either(image, skip, n.to(tl.int64) * PIXELS + pixel, block, inside, C1, C2, SKIP, CB)
    gain = tl.load(affine + n * (C1 + C2) + channel)
    shift = tl.load(affine + (tl.num_programs(2) + n) * (C1 + C2) + channel)
    tile = tile * gain[None, :] + shift[None, :]
    if SILU:
        tile = tile * tl.sigmoid(tile)
    at = (n.to(tl.int64) * PIXELS + pixel) * (C1 + C2) + channel[None, :]
    tl.store(out + at, tile.to(out.dtype.element_ty), mask=inside)


def group_norm(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    skip: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """Three kernels: sums over chunks of pixels, in a fixed order, so that a picture repeats; what follows from them; its use."""
    rows, height, width, own = image.shape
    pixels, others = height * width, 0 if skip is None else skip.shape[-1]
    channels = own + others
    block = power_of_two_in(own | others, WIDEST)
    tile, blocks = TILE // block, channels // block
    chunk = triton.cdiv(triton.cdiv(pixels, max(1, PROGRAMS // (rows * blocks))), tile) * tile
    chunks = triton.cdiv(pixels, chunk)
    sums = torch.empty((2, rows, chunks, channels), device=image.device, dtype=torch.float32)
    affine = torch.empty((2, rows, channels), device=image.device, dtype=torch.float32)
    out = image.new_empty(rows, height, width, channels)
    tiling: dict[str, Any] = {"SKIP": skip is not None, "CB": block, "P": tile, "num_warps": WARPS}
    launch(_channel_sums, (chunks, blocks, rows), image, skip, sums, pixels, chunk, own, others, **tiling)
    size = channels // groups
    padded = max(LARGEST_GROUP, triton.next_power_of_2(size))
    line, repeat = (0, 1) if offset is None else (offset.stride(0), rows // len(offset))
    launch(
        _group_affine, (groups, rows),
        sums, offset, weight, bias, affine, pixels, chunks, channels, size, line, repeat, eps,
        OFFSET=offset is not None, GSP=padded, BLOCK=max(1, TILE // padded), num_warps=4,
    )  # fmt: skip
    grid = (triton.cdiv(pixels, tile), blocks, rows)
    launch(_apply_affine, grid, image, skip, affine, out, pixels, own, others, SILU=silu, **tiling)
    return out


@triton.jit(do_not_specialize=["TOKENS"])
def _layer_norm(
    stream, due, offset, weight, bias, scale, normal, TOKENS, EPS,
    DUE: tl.constexpr, SCALED: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    channel = tl.arange(0, CP)[None, :]
    real = channel < C
    factor = tl.load(scale) if SCALED else 1.0
    gain = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    moved = tl.load(offset + channel, mask=real, other=0.0).to(tl.float32)
    inside = (token < TOKENS) & real
    at = token.to(tl.int64) * C + channel
    tile = tl.load(stream + at, mask=inside, other=0.0).to(tl.float32)
    if DUE:
        tile += tl.load(due + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(stream + at, tile.to(stream.dtype.element_ty), mask=inside)
    tile += moved
    mean = tl.sum(tile, axis=1)[:, None] / C
    centred = tl.where(real, tile - mean, 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, axis=1)[:, None] / C + EPS)
    tile = (centred * deviation * gain + shift) * factor
    tl.store(normal + at, tile.to(normal.dtype.element_ty), mask=inside)


def layer_norm(
    stream: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, *, eps: float, due: Tensor | None, fp8_scale: Tensor | None
) -> Tensor:
    channels = stream.shape[-1]
    tokens, padded = stream.numel() // channels, triton.next_power_of_2(channels)
    together = max(1, TILE // padded)
    normal = torch.empty_like(stream, dtype=stream.dtype if fp8_scale is None else torch.float8_e4m3fn)
    launch(
        _layer_norm, (triton.cdiv(tokens, together),),
        stream, due, offset, weight, bias, fp8_scale, normal, tokens, eps,
        DUE=due is not None, SCALED=fp8_scale is not None, C=channels, CP=padded, R=together, num_warps=WARPS,
    )  # fmt: skip
    return normal


@triton.jit(do_not_specialize=["TOKENS"])
def _add(left, right, bias, TOKENS, C, R: tl.constexpr, BLOCK: tl.constexpr):
    token = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = token < TOKENS
    at = token.to(tl.int64) * C + channel
    tile = tl.load(left + at, mask=inside).to(tl.float32) + tl.load(right + at, mask=inside).to(tl.float32)
    tile += tl.load(bias + channel).to(tl.float32)
    tl.store(left + at, tile.to(left.dtype.element_ty), mask=inside)


def add(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    channels = left.shape[-1]
    tokens, block = left.numel() // channels, power_of_two_in(channels, WIDEST)
    together = ADD_TILE // block
    grid = (triton.cdiv(tokens, together), channels // block)
    launch(_add, grid, left, right, bias, tokens, channels, R=together, BLOCK=block, num_warps=ADD_WARPS)
    return left


@triton.jit(do_not_specialize=["HEIGHT", "WIDTH"])
def _join_corners(corners, bias, out, HEIGHT, WIDTH, C, X: tl.constexpr, BLOCK: tl.constexpr):
    """One line of the output: X pixels of BLOCK channels. HEIGHT and WIDTH are the small image's."""
    row, y = tl.program_id(0) // (2 * HEIGHT), tl.program_id(0) % (2 * HEIGHT)
    x = (tl.program_id(1) * X + tl.arange(0, X))[:, None]
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = x < 2 * WIDTH
    from_y, from_x = y // 2 + y % 2, x // 2 + x % 2
    pixel = (row.to(tl.int64) * (HEIGHT + 1) + from_y) * (WIDTH + 1) + from_x
    corner = (y % 2) * 2 + x % 2
    tile = tl.load(corners + (pixel * 4 + corner) * C + channel, mask=inside).to(tl.float32)
    tile += tl.load(bias + channel).to(tl.float32)
    at = (tl.program_id(0).to(tl.int64) * (2 * WIDTH) + x) * C + channel
    tl.store(out + at, tile.to(out.dtype.element_ty), mask=inside)


def join_corners(corners: Tensor, bias: Tensor) -> Tensor:
    rows, height, width = corners.shape[0], corners.shape[1] - 1, corners.shape[2] - 1
    channels = len(bias)
    block = power_of_two_in(channels, WIDEST)
    together = min(ADD_TILE // block, triton.next_power_of_2(2 * width))
    out = corners.new_empty(rows, 2 * height, 2 * width, channels)
    grid = (rows * 2 * height, triton.cdiv(2 * width, together), channels // block)
    launch(_join_corners, grid, corners, bias, out, height, width, channels, X=together, BLOCK=block, num_warps=ADD_WARPS)
    return out


@triton.jit
def _softmax(scores, out, KEYS, BLOCK: tl.constexpr):
    line, key = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    tile = tl.load(scores + line * KEYS + key, mask=key < KEYS, other=-float("inf"))
    tile = tl.exp2((tile - tl.max(tile)) * 1.4426950408889634)  # log2(e)
    tl.store(out + line * KEYS + key, (tile / tl.sum(tile)).to(out.dtype.element_ty), mask=key < KEYS)


def softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    lines, keys = scores.shape
    out = scores.new_empty(scores.shape, dtype=dtype)
    block = triton.next_power_of_2(keys)
    launch(_softmax, (lines,), scores, out, keys, BLOCK=block, num_warps=min(16, max(4, block // 2048)))
    return out
