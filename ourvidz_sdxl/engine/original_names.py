"""diffusers' names in an SDXL UNet -> those it was trained under, in `UNetModel` of Stability-AI/generative-models."""

from __future__ import annotations

from typing import Any

UNET_RESNETS = {  # what is inside of a residual block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


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
        behind = 2 if "Attn" in config.up_block_types[level] else 1  # the resnet, and the attention where there is one
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{first + layers}.{behind}.conv"
    return modules


def original_layer(name: str, modules: dict[str, str]) -> str:
    """A layer's name, by its module's in `unet_modules`."""
    module = next(module for module in modules if name == module or name.startswith(f"{module}."))
    inside = name.removeprefix(module)
    if ".resnets." in name:
        inside = f".{UNET_RESNETS[inside.removeprefix('.')]}"
    return modules[module] + inside
