"""A configuration that the engines would not paint right is refused by the name of what is foreign in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ourvidz_sdxl.engine.configuration import PIPELINES, check_configs, check_pipeline
from ourvidz_sdxl.engine.fast.unet import unsupported
from ourvidz_sdxl.engine.load import SDXL_BASE
from ourvidz_sdxl.errors import ModelInvalid

MODEL = Path(__file__).parents[2] / "models" / "tiny-sdxl"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    found = {part: json.loads((folder / part / "config.json").read_text()) for part in PARTS}
    return found | {"scheduler": json.loads((folder / "scheduler/scheduler_config.json").read_text())}


@pytest.mark.parametrize("folder", [SDXL_BASE, MODEL])
def test_sdxl_itself_is_allowed(folder: Path) -> None:
    check_configs(folder, configs(folder))


def test_null_as_published_means_false() -> None:
    """`upcast_attention` is null in the configuration of stabilityai/stable-diffusion-xl-base-1.0."""
    published = configs(SDXL_BASE)["unet"] | {"upcast_attention": None, "dropout": 0, "only_cross_attention": None}
    assert unsupported(published) == []
    check_configs(SDXL_BASE, configs(SDXL_BASE) | {"unet": published})


FOREIGN: dict[str, tuple[str, dict[str, Any], str]] = {
    "inpainting": ("unet", {"in_channels": 9}, "takes 9 channels and not 4; an inpainting model"),
    "instruct-pix2pix": ("unet", {"in_channels": 8}, "takes 8 channels and not 4; an instruct-pix2pix model"),
    "learned variance": ("unet", {"out_channels": 8}, "out_channels=8"),
    "other text": ("unet", {"cross_attention_dim": 768}, "cross_attention_dim=768"),
    "other size conditioning": ("unet", {"projection_class_embeddings_input_dim": 2560}, "=2560 of the unet"),
    "without size conditioning": ("unet", {"addition_embed_type": None}, "addition_embed_type='none'"),
    "Kandinsky's conditioning": ("unet", {"addition_embed_type": "text_image"}, "addition_embed_type='text_image'"),
    "classes": ("unet", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
    "numbered classes": ("unet", {"num_class_embeds": 1000}, "num_class_embeds=1000"),
    "an image prompt": ("unet", {"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type='ip_image_proj'"),
    "a latent consistency model": ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim=256"),
    "GLIGEN": ("unet", {"attention_type": "gated"}, "attention_type='gated'"),
    "AnimateDiff": ("unet", {"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
    "no size": ("unet", {"sample_size": None}, "sample_size of unet is None and not"),
    "other layers at each level": ("unet", {"layers_per_block": [2, 2, 2]}, "layers_per_block of unet is"),
    "blocks that are no list": ("vae", {"up_block_types": 5}, "a vae with 5 among up_block_types"),
    "a tiny VAE": ("vae", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    "a VAE of 16 channels": ("vae", {"latent_channels": 16}, "latent_channels=16"),
    "a VAE without attention": ("vae", {"mid_block_add_attention": False}, "mid_block_add_attention=False"),
    "attention at every level": ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
    "no scale": ("vae", {"scaling_factor": 0}, "scaling_factor=0"),
    "an endless scale": ("vae", {"scaling_factor": float("nan")}, "scaling_factor=nan"),
    "half a normalisation": ("vae", {"latents_mean": [0, 0, 0, 0]}, "without the other"),
    "3 channels' means": ("vae", {"latents_mean": [0] * 3, "latents_std": [1] * 4}, "latents_mean="),
    "no deviation": ("vae", {"latents_mean": [0] * 4, "latents_std": [1, 1, 1, 0]}, "has a zero"),
    "two shifts": ("vae", {"latents_mean": [0] * 4, "latents_std": [1] * 4, "shift_factor": 0.1}, "contradict"),
    "Long-CLIP": ("text_encoder", {"max_position_embeddings": 248}, "max_position_embeddings=248"),
    "T5": ("text_encoder_2", {"model_type": "t5"}, "model_type='t5'"),
    "bitsandbytes": ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    "EDM": ("scheduler", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
    "EDM's other": ("scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDMDPMSolverMultistepScheduler"),
    "SA-Solver": ("scheduler", {"_class_name": "SASolverScheduler"}, "SASolverScheduler"),
    "flow matching": ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEuler"),
    "flow sigmas": ("scheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
    "EDM's time": ("scheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
    "an unknown scheduler": ("scheduler", {"_class_name": "NobodysScheduler"}, "NobodysScheduler"),
    "no scheduler": ("scheduler", {"_class_name": None}, "None"),
    "unknown betas": ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    "unknown timesteps": ("scheduler", {"timestep_spacing": "random"}, "timestep_spacing='random'"),
}


@pytest.mark.parametrize(("part", "change", "told"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_foreign_is_named(part: str, change: dict[str, Any], told: str) -> None:
    whole = configs(SDXL_BASE)
    with pytest.raises(ModelInvalid, match=told):
        check_configs(SDXL_BASE, whole | {part: whole[part] | change})


@pytest.mark.parametrize(
    "change",
    [
        {"time_embedding_type": "fourier"},
        {"conv_in_kernel": 1},
        {"resnet_skip_time_act": True},
        {"cross_attention_norm": "layer_norm"},
        {"mid_block_only_cross_attention": True},
        {"down_block_types": ["SimpleCrossAttnDownBlock2D"]},
    ],
)
def test_what_only_diffusers_computes_is_not_painted_by_the_fast_engine(change: dict[str, Any]) -> None:
    assert unsupported(configs(SDXL_BASE)["unet"] | change) != []


@pytest.mark.parametrize("name", ["StableDiffusionXLControlNetPipeline", "StableDiffusionXLInstructPix2PixPipeline", None])
def test_another_pipeline_is_refused(name: str | None) -> None:
    with pytest.raises(ModelInvalid, match=f"holds a {name}, not SDXL"):
        check_pipeline(SDXL_BASE, {"_class_name": name})


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_over_the_same_parts_are_allowed(name: str) -> None:
    check_pipeline(SDXL_BASE, {"_class_name": name})
