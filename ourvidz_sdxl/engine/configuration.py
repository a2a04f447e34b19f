"""Configurations of an SDXL's parts that the worker paints right; any other is refused by name.

Values that diffusers' classes read (its `config.json` files), as far as another value would make
another model: one that needs an input which no job brings, or that the engines compute otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ourvidz_sdxl.errors import ModelInvalid

Config = Mapping[str, Any]

PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
CLIP_CONTEXT = 77  # tokens, the start and the end included
UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "addition_embed_type": "text_time",
    "attention_type": "default",  # "gated" is GLIGEN
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,  # a guidance scale as an input: LCM's distillation
    "time_embedding_type": "positional",
}
VAE: Config = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "mid_block_add_attention": True,
}
VAE_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
TEXT: Config = {"model_type": "clip_text_model", "max_position_embeddings": CLIP_CONTEXT}
SCHEDULER: Config = {
    "timestep_type": "discrete",  # "continuous" goes with EDM's sigmas
    "use_flow_sigmas": False,
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}
# Classes of diffusers that a checkpoint may name as its own: betas over discrete timesteps, and any number of steps. Not among
# them: EDM's, whose sigmas are continuous, and SASolver, which in one step does not arrive at the image (diffusers 0.42.1).
SCHEDULER_CLASSES = {
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "HeunDiscrete", "EulerDiscrete", "EulerAncestralDiscrete"),
        *("DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "KDPM2Discrete", "DEISMultistep"),
        *("KDPM2AncestralDiscrete", "UniPCMultistep", "LCM", "TCD"),
    )
}
QUANTISED = "quantization_config"


def check_pipeline(path: Path, index: Config) -> None:
    """Raises ModelInvalid for the model_index.json of another pipeline than SDXL's."""
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ModelInvalid(f"{path} holds a {name}, not SDXL")


def check_configs(path: Path, configs: Mapping[str, Config]) -> None:
    """Checks config.json of each part and scheduler_config.json (`scheduler`); raises ModelInvalid."""
    for part, config in configs.items():
        if method := config.get(QUANTISED):
            kind = method.get("quant_method") if isinstance(method, Mapping) else method
            raise ModelInvalid(f"{path}: the {part} is quantised ({kind}), which is not read")
    unet, vae, scheduler = (configs[part] for part in ("unet", "vae", "scheduler"))
    check_latent_channels(path, unet.get("in_channels", 4))
    _check(path, "unet", {**unet, "addition_embed_type": unet.get("addition_embed_type") or "none"}, UNET)
    _check(path, "vae", vae, VAE)
    for name, kind in VAE_BLOCKS.items():
        if others := other_blocks(vae, name, (kind,)):
            raise ModelInvalid(f"{path}: a vae with {', '.join(others)} among {name} is not supported")
    check_latent_scale(path, vae)
    for part in ("text_encoder", "text_encoder_2"):
        _check(path, part, configs[part], TEXT)
    _check_widths(path, unet, configs["text_encoder"], configs["text_encoder_2"])
    scheduler_class = scheduler.get("_class_name")
    if str(scheduler_class) not in SCHEDULER_CLASSES:
        raise ModelInvalid(f"{path}: its scheduler is {scheduler_class}, which SDXL is not sampled with")
    _check(path, "scheduler", scheduler, SCHEDULER)


def check_latent_channels(path: Path, channels: object) -> None:
    """Raises ModelInvalid for a UNet with another number of input channels than the VAE's latents."""
    if channels != 4:
        kind = {9: "an inpainting model", 8: "an instruct-pix2pix model"}.get(channels if isinstance(channels, int) else 0)
        raise ModelInvalid(f"{path.name}: its UNet takes {channels} channels and not 4; {kind or 'another model'}")


def check_latent_scale(path: Path, vae: Config) -> None:
    """Raises ModelInvalid for numbers that latents cannot be scaled with (see `latents.LatentScale`)."""
    mean, std, shift = (vae.get(name) for name in ("latents_mean", "latents_std", "shift_factor"))
    if not is_number(vae.get("scaling_factor", 1)) or vae.get("scaling_factor", 1) == 0:
        raise ModelInvalid(f"{path}: scaling_factor={vae['scaling_factor']!r} of the vae is no number to scale with")
    if shift is not None and not is_number(shift):
        raise ModelInvalid(f"{path}: shift_factor={shift!r} of the vae is not a number")
    if (mean is None) != (std is None):
        raise ModelInvalid(f"{path}: the vae has one of latents_mean and latents_std without the other")
    if mean is None or std is None:
        return
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if not isinstance(values, list | tuple) or len(values) != 4 or not all(map(is_number, values)):
            raise ModelInvalid(f"{path}: {name}={values!r} of the vae is not a number for each of 4 channels")
    if 0 in std:
        raise ModelInvalid(f"{path}: latents_std={std!r} of the vae has a zero")
    if shift:
        raise ModelInvalid(f"{path}: the vae has a shift_factor beside latents_mean, which contradict each other")


def differing(config: Config, expected: Config) -> list[str]:
    """Entries of `config` with another value than expected, as `name=value`; absent, null and false are equal."""
    found = []
    for name, value in expected.items():
        given = config.get(name, None)
        allowed = value if isinstance(value, tuple) else (value,)
        if given is not None and given not in allowed and (given or any(allowed)):
            found.append(f"{name}={given!r}")
    return found


def other_blocks(config: Config, name: str, known: tuple[str, ...]) -> list[str]:
    """Kinds of block in the list `name` of `config` that are not known."""
    blocks = config.get(name, ())
    return sorted({str(block) for block in (blocks if isinstance(blocks, list | tuple) else [blocks])} - {*known})


def _check(path: Path, part: str, config: Config, expected: Config) -> None:
    if found := differing(config, expected):
        raise ModelInvalid(f"{path}: a {part} with {', '.join(found)} is not supported")


def _check_widths(path: Path, unet: Config, first: Config, second: Config) -> None:
    """The UNet reads both encoders' hidden states side by side, and the second one's projection."""
    numbers = {
        "hidden_size of text_encoder": first.get("hidden_size"),
        "hidden_size of text_encoder_2": second.get("hidden_size"),
        "projection_dim of text_encoder_2": second.get("projection_dim"),
        "addition_time_embed_dim of unet": unet.get("addition_time_embed_dim"),
        "sample_size of unet": unet.get("sample_size"),
        "layers_per_block of unet": unet.get("layers_per_block", 2),
    }
    whole = [value for value in numbers.values() if isinstance(value, int)]
    if len(whole) < len(numbers):
        name = next(name for name, value in numbers.items() if not isinstance(value, int))
        raise ModelInvalid(f"{path}: {name} is {numbers[name]!r} and not a whole number")
    hidden_1, hidden_2, projection, frequencies = whole[:4]
    expected = {
        "cross_attention_dim": hidden_1 + hidden_2,
        "projection_class_embeddings_input_dim": projection + 6 * frequencies,
    }
    for name, number in expected.items():
        if unet.get(name) != number:
            raise ModelInvalid(f"{path}: {name}={unet.get(name)} of the unet, and its text encoders make {number}")


def is_number(value: object) -> bool:
    """Whether JSON's value is a number that a float can be: neither true, nor NaN, nor 10^400."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
