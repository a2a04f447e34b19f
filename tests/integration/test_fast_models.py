"""The fast UNet and VAE compute what diffusers' do, whatever the size: in fp32 on the CPU, by the kernels' references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from ourvidz_sdxl.engine.fast.unet import FastUNet, unsupported
from ourvidz_sdxl.engine.fast.vae import FastDecoder, FastEncoder

CPU = torch.device("cpu")
BUNDLED = Path(__file__).resolve().parents[2] / "models" / "tiny-sdxl"
TOKENS, IMAGES = 77, 2


def sdxl_in_miniature() -> UNet2DConditionModel:
    """SDXL's own structure (levels without and with attention, of different depths) in a few channels."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=48,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:  # gains of exactly 1 and biases of 0 would hide mistakes
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def bundled(kind: Any, part: str) -> Any:
    return kind.from_pretrained(BUNDLED, subfolder=part).eval().requires_grad_(False)


@pytest.mark.parametrize("make", [sdxl_in_miniature, lambda: bundled(UNet2DConditionModel, "unet")], ids=["miniature", "bundled"])
@torch.inference_mode()
def test_the_unet_predicts_what_diffusers_predicts(make: Any) -> None:
    model = make()
    config = model.config
    pooled_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    latents = torch.randn(2 * IMAGES, 4, 16, 24)
    embeds, pooled = torch.randn(2, TOKENS, config.cross_attention_dim), torch.randn(2, pooled_width)
    sizes = torch.tensor([[128.0, 192, 0, 0, 128, 192]] * 2)
    conditions = {"text_embeds": pooled.repeat_interleave(IMAGES, 0), "time_ids": sizes.repeat_interleave(IMAGES, 0)}
    expected = model(
        latents, torch.tensor(500.0), encoder_hidden_states=embeds.repeat_interleave(IMAGES, 0), added_cond_kwargs=conditions
    ).sample

    fast = FastUNet(model, CPU)

    assert all(parameter.numel() == 0 for parameter in model.parameters()), "weights are taken, and never twice in memory"
    times = fast.times(torch.tensor([981.0, 500.0]), pooled, sizes)
    torch.testing.assert_close(fast(latents, fast.texts(embeds), times[1]), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_vae_decodes_and_encodes_what_diffusers_does() -> None:
    vae = bundled(AutoencoderKL, "vae")
    latents, pixels = torch.randn(1, 4, 16, 24), torch.rand(48, 64, 3) * 2 - 1

    decoded = vae.decode(latents / vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    encoded = vae.encode(pixels.permute(2, 0, 1)[None]).latent_dist.mode() * vae.config.scaling_factor

    torch.testing.assert_close(FastDecoder(vae, torch.float32, CPU)(latents), decoded, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(FastEncoder(vae, torch.float32, CPU)(pixels), encoded, atol=1e-4, rtol=1e-4)


def test_a_unet_that_is_not_sdxl_is_refused_by_name() -> None:
    config = dict(bundled(UNet2DConditionModel, "unet").config)
    assert unsupported(config) == []
    assert unsupported(config | {"use_linear_projection": False}) == ["use_linear_projection=False"]
