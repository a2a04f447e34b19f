"""SDXL's VAE, from top to bottom, in fp16 and without its overflow.

Encoder and decoder are each a residual stream that is only ever read through normalisations, which do not care for its scale. So
the stream, and what is inside a residual block, is carried at 1/32 of its size: the weights that write to it are scaled, and the
eps of the norms that read it by the square. The result is the same, and activations up to 2 million fit into fp16, whose 11 bits
are eight times as fine as bf16's. (SDXL's own decoder goes beyond fp16's 65,504, which is why diffusers moves it to fp32.)
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ourvidz_sdxl.engine.fast import kernels
from ourvidz_sdxl.engine.fast.unet import Norm
from ourvidz_sdxl.engine.latents import LatentScale

STREAM_SCALE = 2.0**-5  # a power of two: scaling is exact
QUERIES_AT_ONCE = 2048  # of the one attention over all pixels of the latents: its scores take 134 MB in fp32 at 16,384 keys


class StreamNorm(Norm):
    """A GroupNorm of something that is carried at STREAM_SCALE."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self.weight, self.bias = norm.weight.data.to(dtype), norm.bias.data.to(dtype)
        self.eps, self.groups = float(norm.eps) * STREAM_SCALE**2, norm.num_groups


class Resnet:
    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self.norm1, self.norm2 = StreamNorm(block.norm1, dtype), StreamNorm(block.norm2, dtype)
        self.conv1, self.bias1 = _scaled(block.conv1, dtype)
        self.conv2, self.bias2 = _scaled(block.conv2, dtype)
        self.shortcut: Tensor | None = None
        if block.conv_shortcut is not None:  # from the stream to the stream: only its bias is scaled
            self.shortcut = block.conv_shortcut.weight.data.to(dtype).flatten(1)
            self.bias2 = self.bias2 + (block.conv_shortcut.bias.data * STREAM_SCALE).to(dtype)

    def __call__(self, image: Tensor) -> Tensor:
        hidden = kernels.convolution(self.norm1.group(image, silu=True), self.conv1)
        hidden = kernels.convolution(self.norm2.group(hidden, offset=self.bias1[None], silu=True), self.conv2)
        return kernels.add(hidden, image if self.shortcut is None else functional.linear(image, self.shortcut), self.bias2)


class Attention:
    """One head over all pixels."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self.norm = StreamNorm(block.group_norm, dtype)
        scale = block.to_q.weight.shape[0] ** -0.5
        parts = [(block.to_q, scale), (block.to_k, 1.0), (block.to_v, 1.0)]
        self.qkv = torch.cat([(layer.weight.data * factor).to(dtype) for layer, factor in parts])
        self.qkv_bias = torch.cat([(layer.bias.data * factor).to(dtype) for layer, factor in parts])
        self.out = (block.to_out[0].weight.data * STREAM_SCALE).to(dtype)
        self.out_bias = (block.to_out[0].bias.data * STREAM_SCALE).to(dtype)

    def __call__(self, image: Tensor) -> Tensor:
        tokens = self.norm.group(image, silu=False).flatten(0, 2)
        queries, keys, values = functional.linear(tokens, self.qkv, self.qkv_bias).chunk(3, dim=-1)
        mixed = [kernels.softmax(_scores(some, keys), values.dtype) @ values for some in torch.split(queries, QUERIES_AT_ONCE)]
        return kernels.add(functional.linear(torch.cat(mixed), self.out).view_as(image), image, self.out_bias)


class Middle:
    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self.before, self.after = (Resnet(resnet, dtype) for resnet in block.resnets)
        self.attention = Attention(block.attentions[0], dtype)

    def __call__(self, image: Tensor) -> Tensor:
        return self.after(self.attention(self.before(image)))


class FastDecoder:
    def __init__(self, vae: Any, dtype: torch.dtype, device: torch.device) -> None:
        """`vae` is a diffusers AutoencoderKL, best in fp32; its weights are copied in `dtype`, and it stays whole."""
        decoder = deepcopy(vae.decoder).to(device)
        self.dtype = dtype
        self.device = device
        self.latent_channels: int = vae.config.latent_channels
        self.scale: int = 2 ** (len(decoder.up_blocks) - 1)  # pixels to one latent, along an edge
        self._latent_scale = LatentScale(vae.config, device)
        self._post_quant: Any = None
        if vae.post_quant_conv is not None:
            weight, bias = vae.post_quant_conv.weight.data, vae.post_quant_conv.bias.data
            self._post_quant = (weight.flatten(1).to(device, dtype), bias.to(device, dtype))
        self._enter, self._enter_bias = _scaled(decoder.conv_in, dtype)
        self._enter = kernels.packed_convolution(kernels.filled_up(self._enter, 1))
        self._middle = Middle(decoder.mid_block, dtype)
        self._levels = [
            ([Resnet(resnet, dtype) for resnet in block.resnets], _upsampler(block.upsamplers, dtype))
            for block in decoder.up_blocks
        ]
        self._leave_norm = StreamNorm(decoder.conv_norm_out, dtype)
        self._leave = kernels.packed_convolution(kernels.filled_up(decoder.conv_out.weight.data.to(dtype), 0))
        self._leave_bias = decoder.conv_out.bias.data.float()

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents [1, 4, h, w] as the UNet has them -> fp32 pixels [8 h, 8 w, 3] around -1..1."""
        image = self._latent_scale.to_vae(latents).to(self.dtype).permute(0, 2, 3, 1)
        if self._post_quant is not None:
            image = functional.linear(image, *self._post_quant)
        image = kernels.convolution(kernels.filled_up(image, 3), self._enter) + self._enter_bias
        image = self._middle(image)
        for resnets, upsampler in self._levels:
            for resnet in resnets:
                image = resnet(image)
            if upsampler is not None:
                image = kernels.upsampled_convolution(image, *upsampler)
        image = kernels.convolution(self._leave_norm.group(image, silu=True), self._leave)
        pixels: Tensor = image[0, ..., : len(self._leave_bias)].float() + self._leave_bias
        return pixels


class FastEncoder:
    def __init__(self, vae: Any, dtype: torch.dtype, device: torch.device) -> None:
        """As FastDecoder."""
        encoder = deepcopy(vae.encoder).to(device)
        self.dtype = dtype
        self.device = device
        self.latent_channels: int = vae.config.latent_channels
        self.scale: int = 2 ** (len(encoder.down_blocks) - 1)
        self._latent_scale = LatentScale(vae.config, device)
        self._enter, self._enter_bias = _scaled(encoder.conv_in, dtype)
        self._enter = kernels.packed_convolution(kernels.filled_up(self._enter, 1))
        self._levels = [
            ([Resnet(resnet, dtype) for resnet in block.resnets], _downsampler(block.downsamplers, dtype))
            for block in encoder.down_blocks
        ]
        self._middle = Middle(encoder.mid_block, dtype)
        self._leave_norm = StreamNorm(encoder.conv_norm_out, dtype)
        self._leave = kernels.packed_convolution(encoder.conv_out.weight.data.to(dtype))
        self._leave_bias = encoder.conv_out.bias.data.float()
        self._quant: Any = None
        if vae.quant_conv is not None:
            weight, bias = vae.quant_conv.weight.data, vae.quant_conv.bias.data
            self._quant = (weight.flatten(1).to(device, torch.float32), bias.to(device, torch.float32))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [height, width, 3] in -1..1 -> fp32 latents [1, 4, height / 8, width / 8] as the UNet has them: the mode."""
        image = kernels.convolution(kernels.filled_up(pixels[None].to(self.dtype), 3), self._enter) + self._enter_bias
        for resnets, downsampler in self._levels:
            for resnet in resnets:
                image = resnet(image)
            if downsampler is not None:
                weight, bias = downsampler
                image = kernels.convolution(functional.pad(image, (0, 0, 0, 1, 0, 1)), weight, stride=2, padding=0) + bias
        image = self._leave_norm.group(self._middle(image), silu=True)
        moments = kernels.convolution(image, self._leave).float() + self._leave_bias
        if self._quant is not None:
            moments = functional.linear(moments, *self._quant)
        return self._latent_scale.to_unet(moments[..., : self.latent_channels].permute(0, 3, 1, 2))


def as_bytes(pixels: Tensor) -> Tensor:
    """fp32 pixels around -1..1 -> 8 bits."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _scaled(convolution: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution from a normalised input into the stream."""
    weight, bias = (parameter.data * STREAM_SCALE for parameter in (convolution.weight, convolution.bias))
    return kernels.packed_convolution(weight.to(dtype)), bias.to(dtype)


def _upsampler(upsamplers: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """From the stream to the stream: only the bias is scaled."""
    if not upsamplers:
        return None
    convolution = upsamplers[0].conv
    return kernels.folded_upsampling(convolution.weight.data).to(dtype), (convolution.bias.data * STREAM_SCALE).to(dtype)


def _downsampler(downsamplers: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """From the stream to the stream, too."""
    if not downsamplers:
        return None
    convolution = downsamplers[0].conv
    weight = kernels.packed_convolution(convolution.weight.data.to(dtype))
    return weight, (convolution.bias.data * STREAM_SCALE).to(dtype)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """fp32, which a GPU's matrix units have anyway before they round."""
    if queries.is_cuda and queries.dtype is not torch.float32:
        return torch.mm(queries, keys.T, out_dtype=torch.float32)
    return queries.float() @ keys.float().T
