"""SDXL's UNet, from top to bottom, with everything that does not change from step to step taken out of the step.

It is built from a loaded diffusers UNet, whose weights it takes over: afterwards that model is hollow. What differs from it:

- keys and values of the text, and the offsets that time and size add to the residual blocks, are computed once a job;
- queries, keys and values of self-attention are one multiplication;
- a convolution's bias is added by whatever reads its result: cuDNN would make a pass of its own of it;
- a skip connection is never concatenated: the normalisation and the 1 x 1 convolution behind it read both halves.

Weights are plain tensors that captured graphs know by address. A LoRA is added before (`engine.lora.with_lora`), to a UNet of its
own, which becomes a second FastUNet with graphs of its own. ControlNet's residuals and IP-Adapter's keys would be further inputs of
`FastUNet.__call__`, beside `texts` and `times`.

Images are [rows, height, width, channels]. `rows` is guidance x images, all unguided rows first. `prompts` is the number of
different conditionings among the rows (2 with guidance, else 1); the rows of one lie together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from ourvidz_sdxl.engine.configuration import differing, other_blocks
from ourvidz_sdxl.engine.fast import kernels
from ourvidz_sdxl.engine.fast.fp8 import Fp8FeedForward, Fp8Linear, scale_after_norm

SUPPORTED = {
    "addition_embed_type": "text_time",
    "use_linear_projection": True,
    "act_fn": "silu",
    "resnet_time_scale_shift": "default",
    "resnet_out_scale_factor": 1.0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "time_cond_proj_dim": None,
    "class_embed_type": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "upcast_attention": False,
    "center_input_sample": False,
    "time_embedding_act_fn": None,
    "attention_type": "default",
    "dropout": 0.0,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "encoder_hid_dim": None,
    "mid_block_only_cross_attention": None,
    "num_class_embeds": None,
    "resnet_skip_time_act": False,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def unsupported(config: Any) -> list[str]:
    """Entries of a UNet's configuration that this module does not compute; empty for any SDXL, of any size."""
    return [
        *differing(config, SUPPORTED),
        *(found for name, kinds in BLOCKS.items() for found in other_blocks(config, name, kinds)),
    ]


def take(parameter: nn.Parameter) -> Tensor:
    """The parameter's tensor; the parameter itself is left empty, so that repacked weights do not exist twice."""
    tensor = parameter.data
    parameter.data = tensor.new_empty(0)
    return tensor


class Slices:
    """Many layers that read the same input, as one: each has a slice of the stacked output. The stack is made beforehand."""

    def __init__(self, layers: list[nn.Linear], device: torch.device) -> None:
        like = layers[0].weight
        outputs = sum(layer.out_features for layer in layers)
        self.weight = torch.empty(outputs, layers[0].in_features, dtype=like.dtype, device=device)
        self.bias = None if layers[0].bias is None else torch.empty(outputs, dtype=like.dtype, device=device)
        self._end = 0

    def add(self, weight: Tensor, bias: Tensor | None = None) -> slice:
        own = slice(self._end, self._end + len(weight))
        self._end = own.stop
        self.weight[own] = weight
        if self.bias is not None and bias is not None:
            self.bias[own] = bias
        return own


class Norm:
    """Weights of a GroupNorm or a LayerNorm."""

    def __init__(self, norm: Any) -> None:
        self.weight, self.bias, self.eps = take(norm.weight), take(norm.bias), float(norm.eps)
        self.groups: int = getattr(norm, "num_groups", 1)
        self.fp8_scale: Tensor | None = None

    def group(self, image: Tensor, *, silu: bool, skip: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        return kernels.group_norm(
            image, self.weight, self.bias, groups=self.groups, eps=self.eps, silu=silu, skip=skip, offset=offset
        )

    def layer(self, stream: Tensor, offset: Tensor, due: Tensor | None = None) -> Tensor:
        return kernels.layer_norm(stream, offset, self.weight, self.bias, eps=self.eps, due=due, fp8_scale=self.fp8_scale)

    def put_out_fp8(self) -> Tensor:
        """From now on; returns the scale."""
        self.fp8_scale = scale_after_norm(self.weight, self.bias)
        return self.fp8_scale


class Resnet:
    def __init__(self, block: Any, times: Slices) -> None:
        block.to(times.weight.device)
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.conv1 = kernels.packed_convolution(take(block.conv1.weight))
        self.conv2 = kernels.packed_convolution(take(block.conv2.weight))
        self.time = times.add(take(block.time_emb_proj.weight), take(block.time_emb_proj.bias) + take(block.conv1.bias))
        self.bias = take(block.conv2.bias)
        self.shortcut: Tensor | None = None
        if block.conv_shortcut is not None:
            self.shortcut = take(block.conv_shortcut.weight).flatten(1)
            self.bias = self.bias + take(block.conv_shortcut.bias)

    def __call__(self, image: Tensor, skip: Tensor | None, times: Tensor) -> Tensor:
        hidden = kernels.convolution(self.norm1.group(image, skip=skip, silu=True), self.conv1)
        hidden = kernels.convolution(self.norm2.group(hidden, offset=times[:, self.time], silu=True), self.conv2)
        return kernels.add(hidden, self._shortcut(image, skip), self.bias)

    def _shortcut(self, image: Tensor, skip: Tensor | None) -> Tensor:
        if self.shortcut is None:
            return image
        own = image.shape[-1]
        residual = functional.linear(image, self.shortcut[:, :own])
        if skip is not None:  # what a 1 x 1 convolution of both, concatenated, would give
            residual.flatten(0, -2).addmm_(skip.flatten(0, -2), self.shortcut[:, own:].T)
        return residual


class Linear:
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, tokens: Tensor) -> Tensor:
        return functional.linear(tokens, self.weight)


class FeedForward:
    """GEGLU (rows of values and gates in turns) and the projection after it."""

    def __init__(self, gate: Tensor, gate_bias: Tensor, project: Tensor) -> None:
        self.gate, self.gate_bias, self.project = gate, gate_bias, project

    def __call__(self, tokens: Tensor, onto: Tensor) -> None:
        """Adds onto the stream [rows x tokens, channels]."""
        onto.addmm_(kernels.geglu(tokens, self.gate, self.gate_bias).flatten(0, 1), self.project.T)


class TransformerBlock:
    """The residual stream comes without the biases that were due so far; `owed` is their sum, the same for every token.

    So each branch ends in one multiplication that adds onto the stream in place, and its bias waits for the next normalisation.
    In FP8, whose multiplication cannot add, the last branch waits for that, too.
    """

    def __init__(self, block: Any, texts: Slices, owed: Tensor, *, fp8: bool) -> None:
        block.to(texts.weight.device)
        self.norm1, self.norm2, self.norm3 = Norm(block.norm1), Norm(block.norm2), Norm(block.norm3)
        self.heads: int = block.attn1.heads
        own, text = block.attn1, block.attn2
        qkv = torch.cat([take(own.to_q.weight), take(own.to_k.weight), take(own.to_v.weight)])
        self.out = take(own.to_out[0].weight)
        text_q = take(text.to_q.weight)
        self.text_k, self.text_v = texts.add(take(text.to_k.weight)), texts.add(take(text.to_v.weight))
        self.text_out = take(text.to_out[0].weight)
        gate, project = block.ff.net[0].proj, block.ff.net[2]
        gate_weight, gate_bias = kernels.interleave_rows(take(gate.weight)), kernels.interleave_rows(take(gate.bias))
        project_weight = take(project.weight)
        self.qkv: Linear | Fp8Linear
        self.text_q: Linear | Fp8Linear
        self.feed_forward: FeedForward | Fp8FeedForward
        if fp8:
            self.qkv = Fp8Linear(qkv, self.norm1.put_out_fp8())
            self.text_q = Fp8Linear(text_q, self.norm2.put_out_fp8())
            scale = self.norm3.put_out_fp8()
            self.feed_forward = Fp8FeedForward(gate_weight, gate_bias, project_weight, scale, self.norm3.weight)
        else:
            self.qkv, self.text_q = Linear(qkv), Linear(text_q)
            self.feed_forward = FeedForward(gate_weight, gate_bias, project_weight)
        self.owed1 = owed
        self.owed2 = self.owed1 + take(own.to_out[0].bias).float()
        self.owed3 = self.owed2 + take(text.to_out[0].bias).float()
        self.owed_after = self.owed3 + take(project.bias).float()

    def __call__(self, stream: Tensor, due: Tensor | None, texts: Tensor) -> Tensor | None:
        """Adds onto the stream [rows, tokens, channels] what was due and its own; returns what is due after it."""
        onto = stream.flatten(0, 1)
        normal = self.norm1.layer(stream, self.owed1, due)
        queries, keys, values = self.qkv(normal).view(*normal.shape[:2], 3, self.heads, -1).unbind(2)
        onto.addmm_(kernels.attention(queries, keys, values).flatten(0, 1), self.out.T)

        queries = self.text_q(self.norm2.layer(stream, self.owed2))
        onto.addmm_(self._look_at_text(queries, texts).flatten(0, 1), self.text_out.T)

        return self.feed_forward(self.norm3.layer(stream, self.owed3), onto)

    def _look_at_text(self, queries: Tensor, texts: Tensor) -> Tensor:
        """The rows of one prompt are taken as one long row, since no query knows of any other."""
        by_prompt = queries.view(len(texts), -1, queries.shape[-1])
        tensors = (by_prompt, texts[..., self.text_k], texts[..., self.text_v])
        return kernels.text_attention(*(one.view(*one.shape[:2], self.heads, -1) for one in tensors)).view_as(queries)


class Transformer:
    def __init__(self, model: Any, texts: Slices, *, fp8: bool) -> None:
        for part in (model.norm, model.proj_in, model.proj_out):
            part.to(texts.weight.device)
        self.norm = Norm(model.norm)
        self.enter, owed = take(model.proj_in.weight), take(model.proj_in.bias).float()
        self.blocks: list[TransformerBlock] = []
        for block in model.transformer_blocks:
            self.blocks.append(TransformerBlock(block, texts, owed, fp8=fp8))
            owed = self.blocks[-1].owed_after
        self.leave, bias = take(model.proj_out.weight), take(model.proj_out.bias)
        self.leave_bias = (bias.float() + self.leave.float() @ owed).to(bias.dtype)

    def __call__(self, image: Tensor, texts: Tensor) -> Tensor:
        stream = functional.linear(self.norm.group(image, silu=False).flatten(1, 2), self.enter)
        due = None
        for block in self.blocks:
            due = block(stream, due, texts)
        if due is not None:
            stream += due
        return kernels.add(functional.linear(stream, self.leave).view_as(image), image, self.leave_bias)


@dataclass(frozen=True, kw_only=True)
class Level:
    """What happens at one size of image; `attentions` is empty, or has one for each of the `resnets`."""

    resnets: list[Resnet]
    attentions: list[Transformer]
    resize: tuple[Tensor, Tensor] | None  # weights and bias of the convolution to the next level


class FastUNet:
    def __init__(self, model: Any, device: torch.device, *, fp8: bool = False) -> None:
        """`model` is a diffusers UNet2DConditionModel of a configuration with nothing `unsupported`; it is hollow afterwards.

        It is best on the CPU still, memory-mapped: then it comes to the device part by part, and repacking leaves no holes there.
        `fp8`: see the page of that name.
        """
        config = model.config
        for part in (model.time_embedding, model.add_embedding, model.conv_in, model.conv_norm_out, model.conv_out):
            part.to(device)
        self._frequencies: int = config.block_out_channels[0]
        self._size_frequencies: int = config.addition_time_embed_dim
        self._cos_first: bool = config.flip_sin_to_cos
        self._shift: int = config.freq_shift
        self.dtype: torch.dtype = model.dtype
        self.device = device
        self.latent_channels: int = config.out_channels
        self._time_mlp = [(take(one.weight), take(one.bias)) for one in _linears(model.time_embedding)]
        self._size_mlp = [(take(one.weight), take(one.bias)) for one in _linears(model.add_embedding)]

        times = Slices([part.time_emb_proj for part in model.modules() if isinstance(part, ResnetBlock2D)], device)
        attentions = [part.attn2 for part in model.modules() if isinstance(part, BasicTransformerBlock)]
        texts = Slices([layer for attention in attentions for layer in (attention.to_k, attention.to_v)], device)
        self._enter = kernels.packed_convolution(kernels.filled_up(take(model.conv_in.weight), 1))
        self._enter_bias = take(model.conv_in.bias)
        self._down = [_level(block, getattr(block, "downsamplers", None), times, texts, fp8=fp8) for block in model.down_blocks]
        self._middle = _level(model.mid_block, None, times, texts, fp8=fp8)
        self._up = [
            _level(block, getattr(block, "upsamplers", None), times, texts, fp8=fp8, fold=True) for block in model.up_blocks
        ]
        self._leave_norm = Norm(model.conv_norm_out)
        self._leave = kernels.packed_convolution(kernels.filled_up(take(model.conv_out.weight), 0))
        self._leave_bias = take(model.conv_out.bias)
        self._times, self._texts = (times.weight, times.bias), texts.weight
        self.text_width, self.time_width = len(texts.weight), len(times.weight)

    def texts(self, embeds: Tensor) -> Tensor:
        """Embeddings [prompts, tokens, features] -> keys and values for every transformer block. Once a job."""
        return functional.linear(embeds.to(self.dtype), self._texts)

    def times(self, timesteps: Tensor, pooled: Tensor, sizes: Tensor) -> Tensor:
        """[steps, prompts, n]: what time, pooled text [prompts, 1280] and sizes [prompts, 6] add in every residual block."""
        waves = get_timestep_embedding(timesteps.float(), self._frequencies, self._cos_first, self._shift).to(self.dtype)
        size_waves = get_timestep_embedding(sizes.flatten().float(), self._size_frequencies, self._cos_first, self._shift)
        size_features = torch.cat([pooled.to(self.dtype), size_waves.to(self.dtype).view(len(pooled), -1)], dim=-1)
        both = _mlp(waves, self._time_mlp)[:, None] + _mlp(size_features, self._size_mlp)
        return functional.linear(functional.silu(both), *self._times)

    def __call__(self, latents: Tensor, texts: Tensor, times: Tensor) -> Tensor:
        """Latents [rows, channels, height, width], `texts`, one step of `times` -> the prediction, shaped as the latents.

        Height and width must be multiples of what the levels halve them by (4 for SDXL).
        """
        image = kernels.filled_up(latents.to(self.dtype), 1).permute(0, 2, 3, 1).contiguous()
        image = kernels.convolution(image, self._enter) + self._enter_bias
        skips = [image]
        for level in self._down:
            for index, resnet in enumerate(level.resnets):
                image = resnet(image, None, times)
                if level.attentions:
                    image = level.attentions[index](image, texts)
                skips.append(image)
            if level.resize is not None:
                weight, bias = level.resize
                image = kernels.convolution(image, weight, stride=2) + bias
                skips.append(image)

        first, last = self._middle.resnets
        image = last(self._middle.attentions[0](first(image, None, times), texts), None, times)

        for level in self._up:
            for index, resnet in enumerate(level.resnets):
                image = resnet(image, skips.pop(), times)
                if level.attentions:
                    image = level.attentions[index](image, texts)
            if level.resize is not None:
                image = kernels.upsampled_convolution(image, *level.resize)

        image = kernels.convolution(self._leave_norm.group(image, silu=True), self._leave)
        return (image[..., : self.latent_channels] + self._leave_bias).permute(0, 3, 1, 2)


def _level(block: Any, resizers: Any, times: Slices, texts: Slices, *, fp8: bool, fold: bool = False) -> Level:
    resize = None
    if resizers:
        resizers.to(times.weight.device)
        weight, bias = take(resizers[0].conv.weight), take(resizers[0].conv.bias)
        resize = (kernels.folded_upsampling(weight) if fold else kernels.packed_convolution(weight), bias)
    return Level(
        resnets=[Resnet(one, times) for one in block.resnets],
        attentions=[Transformer(one, texts, fp8=fp8) for one in getattr(block, "attentions", [])],
        resize=resize,
    )


def _linears(embedding: Any) -> tuple[Any, Any]:
    return embedding.linear_1, embedding.linear_2


def _mlp(features: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    first, second = layers
    return functional.linear(functional.silu(functional.linear(features, *first)), *second)
