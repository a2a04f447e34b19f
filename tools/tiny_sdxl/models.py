"""The parts of SDXL, each in the same structure and a hundredth of the width."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tools.tiny_sdxl.tokenizer import CONTEXT_LENGTH, END, START, Vocabulary, load_tokenizers, save_tokenizers

NATIVE_SIZE: Final = 128  # pixels; latents are an eighth of it
LATENT_CHANNELS: Final = 4
FIRST_WIDTH: Final = 96  # of the first text encoder; SDXL: 768
SECOND_WIDTH: Final = 160  # of the second, and of its pooled output; SDXL: 1280
SIZE_EMBEDDING: Final = 32  # per time id; SDXL: 256
_TEXT_LAYERS: Final = 3  # the UNet reads what the last but one gives, as in SDXL
_UNET_WIDTHS: Final = (96, 96, 112)  # SDXL: (320, 640, 1280)
_HEAD_WIDTH: Final = 16  # SDXL: 64
_VAE_WIDTHS: Final = (32, 64, 64, 64)  # SDXL: (128, 256, 512, 512)


def build_text_encoders(vocabulary: Vocabulary) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both encoders with fresh weights.

    CLIP finds the pooled token by `eos_token_id`, so the configuration carries the tokenizer's own ids; the value 2
    would mean the rule of old checkpoints.
    """
    ids = vocabulary.ids
    shared = {
        "vocab_size": len(ids),
        "max_position_embeddings": CONTEXT_LENGTH,
        "num_hidden_layers": _TEXT_LAYERS,
        "bos_token_id": ids[START],
        "eos_token_id": ids[END],
    }
    first = CLIPTextConfig(
        **shared,
        hidden_size=FIRST_WIDTH,
        intermediate_size=4 * FIRST_WIDTH,
        num_attention_heads=4,
        projection_dim=FIRST_WIDTH,
        hidden_act="quick_gelu",
        pad_token_id=ids[END],
    )
    second = CLIPTextConfig(
        **shared,
        hidden_size=SECOND_WIDTH,
        intermediate_size=4 * SECOND_WIDTH,
        num_attention_heads=5,
        projection_dim=SECOND_WIDTH,
        hidden_act="gelu",
        pad_token_id=ids["!"],
    )
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def build_unet() -> UNet2DConditionModel:
    """Three levels, text at the lower two, and added conditioning on pooled text and six sizes in pixels."""
    return UNet2DConditionModel(
        sample_size=NATIVE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=_UNET_WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=tuple(width // _HEAD_WIDTH for width in _UNET_WIDTHS),  # diffusers reads this as heads
        cross_attention_dim=FIRST_WIDTH + SECOND_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_EMBEDDING,
        projection_class_embeddings_input_dim=SECOND_WIDTH + 6 * SIZE_EMBEDDING,
        norm_num_groups=16,
    )


def build_vae() -> AutoencoderKL:
    """Four levels, so an eighth of the size in the latents. Eight groups a norm: with one channel each, flat colours drown."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=_VAE_WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
        sample_size=NATIVE_SIZE,
        force_upcast=False,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL base 1.0's scheduler_config.json."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )


def assemble(
    out: Path,
    vocabulary: Vocabulary,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
) -> StableDiffusionXLPipeline:
    """The parts as one pipeline; the tokenizers' files are written to `out` and read from there."""
    save_tokenizers(vocabulary, out / "tokenizer", out / "tokenizer_2")
    first, second = load_tokenizers(out)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def save(pipe: StableDiffusionXLPipeline, out: Path, vocabulary: Vocabulary) -> None:
    """Write the diffusers folder with weights in half precision, and the tokenizers as SDXL's four files."""
    pipe.to(torch.float16).save_pretrained(out, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        for file in (out / name).iterdir():
            file.unlink()
    save_tokenizers(vocabulary, out / "tokenizer", out / "tokenizer_2")
