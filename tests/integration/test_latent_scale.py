"""Latents are scaled as the VAE's configuration says: in both engines, both ways, and in previews."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.latents import LatentScale
from ourvidz_sdxl.engine.load import load_components
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from tests.integration.test_engine import MODEL, PLAN

MEAN, STD = [0.3, -0.2, 0.1, 0.4], [1.5, 0.8, 1.2, 0.9]
CONFIGS: dict[str, dict[str, Any]] = {
    "the model's own": {},
    "another scaling factor": {"scaling_factor": 0.13025},
    "mean and deviation": {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.5},
    "a shift": {"shift_factor": 0.25},
}


@pytest.fixture(scope="module", params=[*CONFIGS.values()], ids=[*CONFIGS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(MODEL, tmp_path_factory.mktemp("models") / "model"))
    config = folder / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | request.param))
    return folder


@pytest.fixture(scope="module", params=[SdxlEngine, FastEngine])
def engine(request: pytest.FixtureRequest, folder: Path) -> SdxlEngine:
    return request.param.load(folder)  # type: ignore[no-any-return]


def expected_offset_and_gain(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' formula: (raw - mean) * scaling_factor / std, or (raw - shift_factor) * scaling_factor."""
    config = json.loads((folder / "vae/config.json").read_text())
    offset = config["latents_mean"] or [config["shift_factor"] or 0.0] * 4
    deviation = torch.tensor(config["latents_std"] or [1.0] * 4)
    return torch.tensor(offset).view(1, 4, 1, 1), (config["scaling_factor"] / deviation).view(1, 4, 1, 1)


def test_a_picture_is_the_one_that_diffusers_paints(folder: Path, engine: SdxlEngine) -> None:
    """diffusers' SDXL pipeline passes over a shift_factor, and so cannot be asked about it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    if pipeline.vae.config.shift_factor:
        offset, _ = expected_offset_and_gain(folder)
        pipeline.vae.register_to_config(latents_mean=offset.flatten().tolist(), latents_std=[1.0] * 4)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PLAN.prompt,
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance_scale,
        width=PLAN.width,
        height=PLAN.height,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in PLAN.seeds],
    ).images
    ours = engine.paint(PLAN, None, lambda _done, _total: None)
    assert np.abs(np.asarray(ours[0]).astype(int) - np.asarray(theirs[0])).max() <= 1


@torch.inference_mode()
def test_a_reference_becomes_the_latents_that_the_unet_expects(folder: Path, engine: SdxlEngine) -> None:
    picture = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    vae = load_components(folder, device="cpu").vae
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    offset, gain = expected_offset_and_gain(folder)
    expected = (vae.encode(pixels).latent_dist.mode() - offset) * gain
    torch.testing.assert_close(engine._encode(picture), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_preview_has_the_colours_of_the_picture(engine: SdxlEngine) -> None:
    colours = np.zeros((128, 128, 3), np.uint8)
    colours[:64, :64], colours[:64, 64:], colours[64:, :64] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    small = np.asarray(engine._projection(engine._encode(Image.fromarray(colours))[0].clone())).astype(int)
    assert small.shape == (16, 16, 3)
    for rows, columns in ((2, 2), (2, 12), (12, 2), (12, 12)):
        assert np.abs(small[rows, columns] - colours[rows * 8, columns * 8].astype(int)).max() < 60


def test_to_the_vae_and_back_is_the_same() -> None:
    config = load_components(MODEL, device="cpu", empty=["unet", "text_encoder", "text_encoder_2"]).vae.config
    latents = torch.randn(2, 4, 8, 8)
    for change in CONFIGS.values():
        scale = LatentScale(type("Config", (), {**config, **change})(), "cpu")
        torch.testing.assert_close(scale.to_unet(scale.to_vae(latents)), latents)
