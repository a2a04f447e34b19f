"""The functions of `kernels` that multiply matrices, as Triton kernels; what each computes is said there. Tuned on an H100."""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ourvidz_sdxl.engine.fast.triton_launch import launch

QUERIES, KEYS = 64, 32  # of a tile of the text's attention; 77 tokens take three turns: larger tiles were slower
# Rows, columns, depth, stages of the gated layer's tiles. The first is for the 227 KB of shared memory of an H100: 620 TFLOP/s
# with its epilogue, as cuBLAS without. The second fits everywhere and was not tuned.
LARGE_TILE, SMALL_TILE = (128, 256, 64, 4), (128, 128, 32, 3)
LARGE_FP8_TILE, SMALL_FP8_TILE = (128, 256, 128, 3), (128, 128, 64, 3)  # 1,006 TFLOP/s, epilogue included
LINES_TOGETHER = 8  # lines of tiles that are worked on at a time, so that what they share stays in the L2 cache


@triton.jit(do_not_specialize=["TOKENS", "KEYS"])
def _text_attention(
    queries, keys, values, out, TOKENS, KEYS, TEXT_ROW, TEXT_TOKEN, SCALE,
    HEADS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BM queries of one head against all keys. SCALE is the usual one times log2(e), for a softmax in powers of two."""
    head, prompt = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = (tl.program_id(0) * BM + tl.arange(0, BM))[:, None]
    feature = tl.arange(0, D)[None, :]
    at = (prompt * TOKENS + token) * (HEADS * D) + head * D + feature
    query = tl.load(queries + at, mask=token < TOKENS, other=0.0)
    total = tl.zeros((BM, D), tl.float32)
    most = tl.full((BM,), -1e30, tl.float32)
    weights = tl.zeros((BM,), tl.float32)
    for start in range(0, KEYS, BN):
        key = (start + tl.arange(0, BN))[:, None]
        text = prompt * TEXT_ROW + key * TEXT_TOKEN + head * D + feature
        k = tl.load(keys + text, mask=key < KEYS, other=0.0)
        v = tl.load(values + text, mask=key < KEYS, other=0.0)
        scores = tl.dot(query, k.T) * SCALE
        scores = tl.where((start + tl.arange(0, BN))[None, :] < KEYS, scores, -1e30)
        new_most = tl.maximum(most, tl.max(scores, axis=1))
        shrink = tl.exp2(most - new_most)
        share = tl.exp2(scores - new_most[:, None])
        weights = weights * shrink + tl.sum(share, axis=1)
        total = tl.dot(share.to(v.dtype), v, total * shrink[:, None])
        most = new_most
    tl.store(out + at, (total / weights[:, None]).to(out.dtype.element_ty), mask=token < TOKENS)


def text_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    prompts, tokens, heads, size = queries.shape
    out = torch.empty_like(queries)
    launch(
        _text_attention, (triton.cdiv(tokens, QUERIES), heads, prompts),
        queries, keys, values, out, tokens, keys.shape[1], keys.stride(0), keys.stride(1), size**-0.5 * math.log2(math.e),
        HEADS=heads, D=size, BM=QUERIES, BN=KEYS, num_warps=4,
    )  # fmt: skip
    return out.flatten(2)


@triton.jit
def _gelu(x):
    """The exact one, its erf by Abramowitz and Stegun 7.1.26 (off by at most 1.5e-7): half the time of the library's."""
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail *= 0.5 * tl.exp2(z * z * -1.4426950408889634)  # half of 1 - erf(z): the share that is cut off
    return x * tl.where(x < 0, tail, 1.0 - tail)


@triton.jit(do_not_specialize=["M"])
def _geglu(
    tokens, weight, bias, scale, out_scales, out, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Each program takes tile after tile. A value and its gate are neighbours, so that one thread holds both."""
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * tiles_n) * GROUP
        lines = tl.minimum(tiles_m - first, GROUP)
        m = (first + tile % (GROUP * tiles_n) % lines) * BM
        n = tile % (GROUP * tiles_n) // lines * BN
        total = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            total = tl.dot(tokens.load([m, k]), weight.load([n, k]).T, total)
        column = n + tl.arange(0, BN)
        if FP8:
            total *= tl.load(scale)
        total += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        value, gate = tl.split(tl.reshape(total, (BM, BN // 2, 2)))
        product = value * _gelu(gate)
        if FP8:
            half = n // 2 + tl.arange(0, BN // 2)
            product *= tl.load(out_scales + half, mask=half < N // 2, other=0.0)[None, :]
            product = tl.minimum(tl.maximum(product, -448.0), 448.0)  # the largest of the format
        out.store([m, n // 2], product.to(out.dtype))


@cache
def _fitting(device: torch.device, fp8: bool) -> tuple[tuple[int, int, int, int], int]:
    """The gated layer's tile on this device, and how many programs run at once."""
    large, small = (LARGE_FP8_TILE, SMALL_FP8_TILE) if fp8 else (LARGE_TILE, SMALL_TILE)
    if device.type != "cuda":  # Triton's interpreter
        return small, 1
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    rows, columns, depth, stages = large
    size = 1 if fp8 else 2
    needed = size * ((rows + columns) * depth * stages + rows * columns // 2) + 1024  # operands, the result's tile, and barriers
    return large if properties["max_shared_mem"] >= needed else small, properties["multiprocessor_count"]


def geglu(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _gated(tokens, weight, bias, None, None)


def geglu_fp8(tokens: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out_scales: Tensor) -> Tensor:
    return _gated(tokens, weight, bias, scale, out_scales)


def _gated(tokens: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, out_scales: Tensor | None) -> Tensor:
    (rows, columns, depth, stages), programs = _fitting(tokens.device, scale is not None)
    flat = tokens.flatten(0, -2)
    out = flat.new_empty(len(flat), len(weight) // 2)
    tiles = triton.cdiv(len(flat), rows) * triton.cdiv(len(weight), columns)
    launch(
        _geglu, (min(programs, tiles),),
        TensorDescriptor.from_tensor(flat, [rows, depth]),
        TensorDescriptor.from_tensor(weight, [columns, depth]),
        bias, scale, out_scales,
        TensorDescriptor.from_tensor(out, [rows, columns // 2]),
        len(flat), len(weight), flat.shape[1],
        BM=rows, BN=columns, BK=depth, GROUP=LINES_TOGETHER, FP8=scale is not None, num_stages=stages, num_warps=8,
    )  # fmt: skip
    return out.view(*tokens.shape[:-1], -1)
