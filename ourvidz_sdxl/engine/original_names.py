"""diffusers' names of an SDXL's layers -> those of the original implementation, and of files.

The originals are the modules that SDXL was trained with: `UNetModel` and `AutoencoderKL` of
Stability-AI/generative-models, transformers' CLIP, and `CLIP` of mlfoundations/open_clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PREFIXES = {  # of each part in a single file
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
UNET_RESNETS = {  # what is inside of a residual block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
INSIDE: dict[str, dict[str, dict[str, str]]] = {  # part -> kind of module -> its children
    "unet": {"resnets": UNET_RESNETS},
    "vae": {
        "resnets": {"conv_shortcut": "nin_shortcut"},
        "attentions": {
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        },
    },
    "text_encoder": {},
    "text_encoder_2": {
        "layers": {
            "layer_norm1": "ln_1",
            "layer_norm2": "ln_2",
            "self_attn.out_proj": "attn.out_proj",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
        },
    },
}
# Prefixes under which a file has a text encoder with transformers' own names: without the outer
# module `text_model`, as transformers 5.6 and newer save CLIP, and as ComfyUI names its encoders
# (comfy/sdxl_clip.py and comfy/supported_models.py).
TRANSFORMERS_PREFIXES = {
    "text_encoder": (
        "conditioner.embedders.0.transformer.",
        "clip_l.transformer.text_model.",
        "text_encoders.clip_l.transformer.text_model.",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.model.",
        "conditioner.embedders.1.transformer.",
        "conditioner.embedders.1.model.transformer.",
        "clip_g.transformer.",
        "text_encoders.clip_g.transformer.",
    ),
}
VAE_PREFIXES = ("first_stage_model.", "vae.")  # the second: diffusers' single_file_utils.py
OLD_ATTENTION = {  # the VAE's attention before diffusers 0.17 (models/modeling_utils.py)
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
}
QKV = ("q_proj", "k_proj", "v_proj")  # the order of the rows in `in_proj` (torch.nn.MultiheadAttention)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A tensor of a file that a parameter is made from: as it is, transposed, or a third of its rows."""

    name: str
    transposed: bool = False
    third: int | None = None

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter of `shape`."""
        if self.third is not None:
            return (3 * shape[0], *shape[1:])
        return shape[::-1] if self.transposed else shape

    def parameter(self, stored: Any) -> Any:
        """The part of the stored tensor that becomes the parameter."""
        if self.third is not None:
            return stored.chunk(3)[self.third]
        return stored.T.contiguous() if self.transposed else stored


def file_sources(part: str, config: Any, names: Iterable[str]) -> dict[str, list[Source]]:
    """For each parameter of a part, by diffusers' name: the tensors of a single file that it can be."""
    modules = MODULES[part](config)
    return {name: _file_sources(part, modules, name) for name in names}


def _file_sources(part: str, modules: Mapping[str, str], name: str) -> list[Source]:
    same = [Source(name=f"{prefix}{name}") for prefix in TRANSFORMERS_PREFIXES.get(part, ())]
    if part == "vae":
        own = original_layer(name, modules, part)
        return [Source(name=f"{prefix}{own}") for prefix in VAE_PREFIXES]
    if part == "text_encoder_2" and name == "text_projection.weight":
        # OpenCLIP's is no layer but a matrix [in, out], and is multiplied by from the right.
        return [Source(name=f"{PREFIXES[part]}text_projection", transposed=True), *same]
    for third, projection in enumerate(QKV if part == "text_encoder_2" else ()):
        if f".{projection}." in name:
            joined = original_layer(name, modules, part).replace(f"self_attn.{projection}.", "attn.in_proj_")
            return [Source(name=f"{PREFIXES[part]}{joined}", third=third), *same]
    return [Source(name=original_name(part, modules, name)), *same]


def folder_sources(part: str, names: Iterable[str]) -> dict[str, list[Source]]:
    """For each parameter of a part: its names in a diffusers folder, of this and of earlier versions."""
    return {name: [Source(name=known) for known in _folder_names(part, name)] for name in names}


def _folder_names(part: str, name: str) -> Iterable[str]:
    yield name
    if part.startswith("text_encoder"):  # transformers 5.6 took the outer module away
        yield name.removeprefix("text_model.") if name.startswith("text_model.") else f"text_model.{name}"
    if part == "vae" and ".attentions." in name:
        for new, old in OLD_ATTENTION.items():
            if f".{new}." in name:
                yield name.replace(f".{new}.", f".{old}.")


def original_name(part: str, modules: Mapping[str, str], name: str) -> str:
    """diffusers' name of a parameter -> its name in a single file."""
    return PREFIXES[part] + original_layer(name, modules, part)


def original_layer(name: str, modules: Mapping[str, str], part: str = "unet") -> str:
    """The name of a layer, or of its parameter, by its module's in `modules`."""
    module = next(module for module in modules if name == module or name.startswith(f"{module}."))
    rest = f"{name.removeprefix(module)}."
    for kind, children in INSIDE[part].items():
        if f".{kind}." in f".{module}.":
            for child, original in children.items():
                rest = rest.replace(f".{child}.", f".{original}.")
    return modules[module] + rest[:-1]


def unet_modules(config: Any) -> dict[str, str]:
    """The original numbers the blocks of each path in one row: a level's layers, then its change of size."""
    levels, layers = len(config.block_out_channels), config.layers_per_block
    modules = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for level in range(levels):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{first + layer}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{first + layer}.1"
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
        first = level * (layers + 1)
        for layer in range(layers + 1):
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{first + layer}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{first + layer}.1"
        # the resnet, and the attention where there is one
        behind = 2 if "Attn" in config.up_block_types[level] else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{first + layers}.{behind}.conv"
    return modules


def vae_modules(config: Any) -> dict[str, str]:
    """The original counts the decoder's levels by resolution, as the encoder's: the first that runs is the last."""
    levels, layers = len(config.block_out_channels), config.layers_per_block
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        modules |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        modules |= {
            f"{side}.conv_norm_out": f"{side}.norm_out",
            f"{side}.mid_block.resnets.0": f"{side}.mid.block_1",
            f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1",
            f"{side}.mid_block.resnets.1": f"{side}.mid.block_2",
        }
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        for layer in range(layers):
            modules[f"encoder.down_blocks.{level}.resnets.{layer}"] = f"{down}.block.{layer}"
        for layer in range(layers + 1):
            modules[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"{up}.block.{layer}"
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return modules


def clip_modules(_config: Any) -> dict[str, str]:
    """The first text encoder keeps the names of transformers' CLIP."""
    return {name: name for name in ("embeddings", "encoder", "final_layer_norm")}


def open_clip_modules(config: Any) -> dict[str, str]:
    modules = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
        "text_projection.weight": "text_projection",
    }
    for layer in range(config.num_hidden_layers):
        modules[f"text_model.encoder.layers.{layer}"] = f"transformer.resblocks.{layer}"
    return modules


MODULES = {
    "unet": unet_modules,
    "vae": vae_modules,
    "text_encoder": clip_modules,
    "text_encoder_2": open_clip_modules,
}
