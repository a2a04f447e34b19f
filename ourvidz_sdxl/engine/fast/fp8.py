"""The multiplications of a transformer block in FP8, at twice the rate of fp16: half of a step's arithmetic.

No scale depends on what is painted. LayerNorm bounds what it puts out, whatever comes in: with C channels, no value is more than
sqrt(C) standard deviations off. What GEGLU puts out has no such bound; there the weights say how large a channel usually gets.
Attention and the outputs that follow it stay in fp16: rounding what they read would take as long as FP8 saves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ourvidz_sdxl.engine.fast import kernels
from ourvidz_sdxl.engine.fast.kernels import FP8_MAX

# A channel of GEGLU's may be so many times as large as usual before it is cut off. Down to a two-hundredth of the usual it keeps
# all the bits of the format, whose normal numbers end at 2^-6.
HEADROOM = 128.0


def scale_after_norm(weight: Tensor, bias: Tensor) -> Tensor:
    """The factor by which a LayerNorm's output fits into FP8 and nothing is ever cut off; fp32, one number."""
    largest: Tensor = weight.float().abs().amax() * len(weight) ** 0.5 + bias.float().abs().amax()
    return largest.reciprocal().mul(FP8_MAX)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in FP8, and how much too small it is then."""
    scale = weight.float().abs().amax() / FP8_MAX
    return kernels.to_fp8(weight.float() / scale), scale


class Fp8Linear:
    """A linear layer without a bias that reads a LayerNorm's output in FP8."""

    def __init__(self, weight: Tensor, scale_before: Tensor) -> None:
        self.dtype = weight.dtype
        self.weight, self.scale = rounded(weight)
        self.token_scale = 1 / scale_before

    def __call__(self, tokens: Tensor) -> Tensor:
        return kernels.fp8_linear(tokens, self.weight, self.token_scale, self.scale, self.dtype)


class Fp8FeedForward:
    """GEGLU (rows of values and gates in turns) and the projection after it, which leaves its result to be added by others."""

    def __init__(self, gate: Tensor, gate_bias: Tensor, project: Tensor, scale_before: Tensor, norm: Tensor) -> None:
        """`norm`: the weight of the LayerNorm before."""
        self.dtype = gate.dtype
        spread = (gate.float() * norm.float()).square().sum(1).sqrt()  # of each output, for tokens of independent channels
        self.out_scales = FP8_MAX / HEADROOM / (spread[0::2] * spread[1::2]).clamp(min=torch.finfo(torch.float32).tiny ** 0.5)
        self.gate, gate_scale = rounded(gate)
        self.gate_bias = gate_bias
        self.gate_scale = gate_scale / scale_before
        self.project, self.project_scale = rounded(project.float() / self.out_scales)
        self.token_scale = torch.ones_like(self.project_scale)

    def __call__(self, tokens: Tensor, _onto: Tensor) -> Tensor:
        hidden = kernels.geglu_fp8(tokens, self.gate, self.gate_bias, self.gate_scale, self.out_scales)
        return kernels.fp8_linear(hidden, self.project, self.token_scale, self.project_scale, self.dtype)
