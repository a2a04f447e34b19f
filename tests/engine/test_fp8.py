"""Multiplication in FP8: nothing is cut off that must not be, and the error is that of the format."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ourvidz_sdxl.engine.fast import kernels
from ourvidz_sdxl.engine.fast.fp8 import HEADROOM, Fp8FeedForward, Fp8Linear, scale_after_norm
from ourvidz_sdxl.engine.fast.kernels import FP8, FP8_MAX
from ourvidz_sdxl.engine.fast.unet import FeedForward

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12).map(lambda number: 16 * number)


def norm_weights(channels: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(channels, generator=draw), torch.randn(channels, generator=draw)


@given(seeds, sizes, st.floats(0.01, 1e4))
@settings(deadline=None)
def test_what_a_normalisation_puts_out_is_never_cut_off(seed: int, channels: int, outlier: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, bias = norm_weights(channels, draw)
    tokens = torch.randn(1, 40, channels, generator=draw)
    tokens[0, :, seed % channels] *= outlier
    tokens[0, 0] = 0
    tokens[0, 0, seed % channels] = 1  # the furthest from the mean that one of so many channels can be
    offset, scale = torch.zeros(channels), scale_after_norm(weight, bias)
    exact = kernels.layer_norm(tokens, offset, weight, bias, eps=1e-5)
    assert (exact * scale).abs().max() <= FP8_MAX * 1.0001
    rounded = kernels.layer_norm(tokens, offset, weight, bias, eps=1e-5, fp8_scale=scale)
    assert rounded.dtype is FP8
    # 3 bits behind the leading one; below 2^-6 steps of 2^-9
    assert ((rounded.float() / scale - exact).abs() <= exact.abs() * 2**-4 * 1.001 + 2**-10 / scale).all()


@given(seeds, sizes, sizes)
@settings(deadline=None)
def test_a_linear_layer_is_off_by_a_few_percent(seed: int, channels: int, outputs: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    norm, bias = norm_weights(channels, draw)
    weight = torch.randn(outputs, channels, generator=draw)
    scale = scale_after_norm(norm, bias)
    normal = functional.layer_norm(torch.randn(1, 64, channels, generator=draw), (channels,), norm, bias)
    got = Fp8Linear(weight, scale)(kernels.to_fp8(normal * scale))
    assert off(got, functional.linear(normal, weight)) < 0.06


@given(seeds, sizes, sizes)
@settings(deadline=None)
def test_the_feed_forward_layers_are_too_and_leave_the_adding_to_others(seed: int, channels: int, inner: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    norm, bias = norm_weights(channels, draw)
    gate, project = torch.randn(2 * inner, channels, generator=draw) / channels**0.5, torch.randn(16, inner, generator=draw)
    gate[0] *= 300  # one channel far above the others
    gate_bias, scale = torch.randn(2 * inner, generator=draw) / 4, scale_after_norm(norm, bias)
    normal = functional.layer_norm(torch.randn(1, 64, channels, generator=draw), (channels,), norm, bias)
    expected, onto = torch.zeros(64, 16), torch.zeros(64, 16)
    FeedForward(gate, gate_bias, project)(normal, expected)
    due = Fp8FeedForward(gate, gate_bias, project, scale, norm)(kernels.to_fp8(normal * scale), onto)
    assert onto.count_nonzero() == 0
    # Where one channel is nearly all, its roundings by up to a sixteenth multiply: tokens and weights of value and gate, their
    # product, the last weight.
    assert off(due, expected) < (17 / 16) ** 6 - 1


def test_a_channel_far_beyond_the_usual_is_cut_off_and_stays_a_number() -> None:
    gate = torch.eye(16).repeat_interleave(2, dim=0)  # values and gates in turns: each channel times the GELU of itself
    layer = Fp8FeedForward(gate, torch.zeros(32), torch.eye(16), torch.tensor(1.0), torch.ones(16))
    tokens = torch.full((1, 1, 16), 5.0)
    tokens[0, 0, 0] = 300.0  # its square is beyond HEADROOM
    got = layer(kernels.to_fp8(tokens), tokens)[0, 0]
    assert torch.isclose(got[0], torch.tensor(HEADROOM), rtol=0.1)
    assert torch.allclose(got[1:], torch.tensor(25.0), rtol=0.1)


def off(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())
