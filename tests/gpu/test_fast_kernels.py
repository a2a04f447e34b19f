"""Every Triton kernel against its reference in plain torch, on random shapes. On a GPU, or with TRITON_INTERPRET=1 anywhere."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or Triton's interpreter", allow_module_level=True)

from ourvidz_sdxl.engine.fast import kernels, triton_kernels, triton_products
from ourvidz_sdxl.engine.fast.fp8 import Fp8FeedForward, scale_after_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
edges, rows = st.integers(1, 24), st.integers(1, 4)
eights = st.integers(1, 20).map(lambda number: 8 * number)
kernel = settings(max_examples=25, deadline=None)  # a new shape may have to be compiled


def random(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def assert_a_step_apart(got: torch.Tensor, expected: torch.Tensor) -> None:
    """In FP8 (e4m3), of which neighbours are at most 2^-3 of the value apart: what lies between two may go either way.

    What cancelled to nearly nothing differs by fp16's own error of its terms.
    """
    assert got.dtype == expected.dtype == torch.float8_e4m3fn
    got, expected = got.float(), expected.float()
    allowed = expected.abs() / 8 + 1e-2 * expected.square().mean().sqrt() + 1e-6
    assert bool(((got - expected).abs() <= allowed).all())


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    """By the norm of the difference; fp16 alone makes some 3e-4. Never passes what is not a number."""
    assert got.shape == expected.shape
    assert float((got.float() - expected.float()).norm()) <= 3e-3 * float(expected.float().norm()) + 1e-6


@kernel
@given(rows, edges, edges, st.integers(1, 5), st.integers(0, 3), st.booleans(), st.booleans())
def test_group_norm(n: int, height: int, width: int, own: int, others: int, silu: bool, moved: bool) -> None:
    image, skip = random(n, height, width, 32 * own) + 2, random(n, height, width, 32 * others) if others else None
    channels = 32 * (own + others)
    offset = random(1, 2 * channels)[:, channels:] if moved else None
    weight, bias = random(channels), random(channels)
    arguments: dict[str, Any] = {"groups": 16, "eps": 1e-5, "silu": silu, "skip": skip, "offset": offset}
    expected = kernels.group_norm_reference(image, weight, bias, **arguments)
    assert_near(triton_kernels.group_norm(image, weight, bias, **arguments), expected)


@kernel
@given(st.integers(1, 70), eights, st.booleans(), st.booleans())
def test_layer_norm(tokens: int, channels: int, something_due: bool, fp8: bool) -> None:
    stream, offset = random(1, tokens, channels) + 3, random(channels, dtype=torch.float32)
    weight, bias, due = random(channels), random(channels), random(1, tokens, channels) if something_due else None
    scale = scale_after_norm(weight, bias) if fp8 else None
    own = stream.clone()
    expected = kernels.layer_norm_reference(stream, offset, weight, bias, eps=1e-5, due=due, fp8_scale=scale)
    got = triton_kernels.layer_norm(own, offset, weight, bias, eps=1e-5, due=due, fp8_scale=scale)
    assert got.dtype == expected.dtype
    (assert_a_step_apart if fp8 else assert_near)(got, expected)
    assert_near(own, stream)


@kernel
@given(rows, edges, eights)
def test_add(n: int, width: int, channels: int) -> None:
    left, right, bias = random(n, width, channels), random(n, width, channels), random(channels)
    expected = kernels.add_reference(left, right, bias)
    assert_near(triton_kernels.add(left, right, bias), expected)


@kernel
@given(rows, edges, edges, eights)
def test_join_corners(n: int, height: int, width: int, channels: int) -> None:
    corners, bias = random(n, height + 1, width + 1, 4 * channels), random(channels)
    assert_near(triton_kernels.join_corners(corners, bias), kernels.join_corners_reference(corners, bias))


@kernel
@given(st.integers(1, 40), st.integers(1, 300))
def test_softmax(lines: int, keys: int) -> None:
    scores = random(lines, keys, dtype=torch.float32) * 3
    assert_near(triton_kernels.softmax(scores, torch.float16), scores.softmax(-1))


@kernel
@given(st.integers(1, 2), st.integers(1, 140), st.integers(1, 231), st.integers(1, 5), st.sampled_from([16, 32, 64]))
def test_text_attention(prompts: int, tokens: int, keys: int, heads: int, size: int) -> None:
    queries, text = random(prompts, tokens, heads, size), random(prompts, keys, 3 * heads * size)
    k, v = (text[..., at * heads * size :][..., : heads * size].view(prompts, keys, heads, size) for at in (0, 1))
    expected = kernels.attention(queries.float(), k.float(), v.float())
    assert_near(triton_products.text_attention(queries, k, v), expected)


@kernel
@given(st.integers(1, 200), eights, eights)
def test_geglu(tokens: int, channels: int, outputs: int) -> None:
    inputs, weight, bias = random(1, tokens, channels), random(2 * outputs, channels) / channels**0.5, random(2 * outputs)
    assert_near(triton_products.geglu(inputs, weight, bias), kernels.geglu_reference(inputs, weight, bias))


@kernel
@given(st.integers(1, 200), st.integers(1, 10), st.integers(1, 10))
def test_geglu_in_fp8(tokens: int, channels: int, outputs: int) -> None:
    norm = random(16 * channels)
    scale = scale_after_norm(norm, torch.zeros_like(norm))
    weight, bias = random(32 * outputs, 16 * channels) / channels**0.5, random(32 * outputs)
    layer = Fp8FeedForward(weight, bias, random(16 * channels, 16 * outputs), scale, norm)
    inputs = kernels.to_fp8(random(1, tokens, 16 * channels) * scale)
    arguments = (layer.gate, layer.gate_bias, layer.gate_scale, layer.out_scales)
    got, expected = (gated(inputs, *arguments) for gated in (triton_products.geglu_fp8, kernels.geglu_fp8_reference))
    assert_a_step_apart(got, expected)
