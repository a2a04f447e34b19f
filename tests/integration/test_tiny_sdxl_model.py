"""The bundled model paints what its prompt names, combinations included that it never saw, and has SDXL's structure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open

from ourvidz_sdxl.engine import Engine, load_engine
from ourvidz_sdxl.plan import I2IMode, Plan
from ourvidz_sdxl.similarity import similarity
from tools.tiny_sdxl.evaluate import count, load
from tools.tiny_sdxl.judge import look
from tools.tiny_sdxl.shapes import HELD_OUT, Combination, draw, sample_scene

MODEL = Path(__file__).parents[2] / "models" / "tiny-sdxl"
WEIGHTS = {
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}
MOST_BYTES = 24 * 1024**2


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    return load(MODEL, "cpu", torch.float32)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """What the worker paints with."""
    return load_engine(MODEL)


def paint(
    engine: Engine,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompts: Sequence[str] | None = None,
    reference: Image.Image | None = None,
    denoise: float = 1,
    guidance_scale: float = 7.5,
    width: int = 128,
    height: int = 128,
) -> list[Image.Image]:
    """One picture for each prompt and seed, in 20 steps."""
    pictures: list[Image.Image] = []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        plan = Plan(
            mode=I2IMode.MODIFY if reference else I2IMode.NONE,
            prompt=prompt,
            negative_prompt=negative_prompts[index] if negative_prompts else "",
            width=width,
            height=height,
            steps=20,
            guidance_scale=guidance_scale,
            scheduler=None,
            denoise=denoise,
            seeds=(seed,),
        )
        pictures += engine.paint(plan, reference, lambda _done, _total: None)
    return pictures


class TestFiles:
    def test_all_of_it_fits_in_24_mib(self) -> None:
        total = sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file())
        assert total <= MOST_BYTES, f"{total:,} bytes"

    def test_the_weights_are_half_precision_safetensors_under_plain_names(self) -> None:
        assert {str(file.relative_to(MODEL)) for file in MODEL.rglob("*.safetensors")} == WEIGHTS
        for name in WEIGHTS:
            with safe_open(MODEL / name, framework="pt") as file:
                assert {file.get_slice(key).get_dtype() for key in file.keys()} <= {"F16", "I64"}, name  # noqa: SIM118 - no mapping

    def test_nothing_in_it_runs_or_unpickles(self) -> None:
        assert {file.suffix for file in MODEL.rglob("*") if file.is_file()} == {".json", ".txt", ".safetensors", ".md"}


class TestStructure:
    def test_two_text_encoders_meet_in_the_unet(self, pipe: StableDiffusionXLPipeline) -> None:
        first, second, unet = pipe.text_encoder.config, pipe.text_encoder_2.config, pipe.unet.config
        assert type(pipe.text_encoder).__name__ == "CLIPTextModel"
        assert type(pipe.text_encoder_2).__name__ == "CLIPTextModelWithProjection"
        assert unet.cross_attention_dim == first.hidden_size + second.hidden_size
        assert unet.addition_embed_type == "text_time"
        assert unet.projection_class_embeddings_input_dim == second.projection_dim + 6 * unet.addition_time_embed_dim

    def test_the_encoders_find_the_end_that_the_tokenizers_write(self, pipe: StableDiffusionXLPipeline) -> None:
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            assert encoder.config.eos_token_id == tokenizer.eos_token_id != 2
            assert encoder.config.vocab_size == len(tokenizer)
            assert encoder.config.max_position_embeddings == tokenizer.model_max_length == 77

    def test_blocks_vae_and_scheduler_are_sdxls(self, pipe: StableDiffusionXLPipeline) -> None:
        unet, vae, scheduler = pipe.unet.config, pipe.vae.config, pipe.scheduler.config
        assert tuple(unet.down_block_types) == ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        assert tuple(unet.up_block_types) == ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
        assert (unet.layers_per_block, unet.use_linear_projection, unet.sample_size) == (2, True, 16)
        assert (vae.latent_channels, len(vae.block_out_channels), vae.force_upcast) == (4, 4, False)
        assert (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule) == (0.00085, 0.012, "scaled_linear")
        assert (scheduler.prediction_type, scheduler.timestep_spacing, scheduler.steps_offset) == ("epsilon", "leading", 1)


class TestPictures:
    def test_prompts_that_it_never_saw(self, engine: Engine) -> None:
        """A tenth of the hundred; `python -m tools.tiny_sdxl.evaluate` paints all of them."""
        some = HELD_OUT[::10]
        counts = count(paint(engine, [combination.prompt for combination in some], range(len(some))), some)
        assert counts.total == 10
        assert counts.colour >= 0.9 * counts.total, str(counts)
        assert counts.background >= 0.9 * counts.total, str(counts)
        assert counts.shape >= 0.8 * counts.total, str(counts)

    def test_swapped_colours_swap_in_the_picture(self, engine: Engine) -> None:
        prompts = ["a red circle on a blue background", "a blue circle on a red background"]
        one, other = (look(picture) for picture in paint(engine, prompts, [7, 7]))
        assert (one.colour, one.background) == ("red", "blue")
        assert (other.colour, other.background) == ("blue", "red")

    def test_a_negative_prompt_keeps_a_colour_away(self, engine: Engine) -> None:
        prompts, seeds = ["a circle on a white background"] * 3, range(3)
        plain = [look(picture).colour for picture in paint(engine, prompts, seeds)]
        unwanted = [str(colour) for colour in plain]
        others = [look(picture).colour for picture in paint(engine, prompts, seeds, negative_prompts=unwanted)]
        kept = sum(before == after for before, after in zip(plain, others, strict=True))
        assert kept <= 1, f"{plain} -> {others}"

    def test_words_of_praise_and_blame_change_nothing(self, engine: Engine) -> None:
        prompts = [
            "A beautiful photo of a YELLOW STAR on a purple background, masterpiece, best quality, highly detailed, 8k",
            "green square, black background, zxqv, cinematic lighting",
        ]
        blame = ["blurry, low quality, worst quality, deformed, watermark, text"] * 2
        asked = [
            Combination(shape="star", colour="yellow", background="purple"),
            Combination(shape="square", colour="green", background="black"),
        ]
        counts = count(paint(engine, prompts, [1, 2], negative_prompts=blame), asked)
        assert (counts.shape, counts.colour, counts.background) == (2, 2, 2)

    def test_a_named_place(self, engine: Engine) -> None:
        places = ["top left", "bottom right"]
        prompts = [f"a red circle in the {place} on a white background" for place in places]
        first, second = (np.asarray(picture, dtype=float) for picture in paint(engine, prompts, [3, 3]))
        assert first[:64, :64, 2].mean() < 0.8 * first[64:, 64:, 2].mean(), "red has little blue in it"
        assert second[64:, 64:, 2].mean() < 0.8 * second[:64, :64, 2].mean()

    @pytest.mark.parametrize(("width", "height"), [(192, 128), (104, 152), (256, 256)])
    def test_other_sizes(self, engine: Engine, width: int, height: int) -> None:
        asked = Combination(shape="cross", colour="orange", background="green")
        (picture,) = paint(engine, [asked.prompt], [0], width=width, height=height)
        assert picture.size == (width, height)
        assert look(picture).agrees(asked) == (True, True, True)


class TestReference:
    @pytest.mark.parametrize(("width", "height"), [(128, 128), (168, 96), (256, 256)])
    def test_a_copy_is_the_reference(self, engine: Engine, width: int, height: int) -> None:
        scene = sample_scene(random.Random(width), HELD_OUT)
        reference = draw(scene, width=width, height=height)
        (copy,) = paint(engine, [""], [0], reference=reference, denoise=0.05, guidance_scale=1, width=width, height=height)
        assert similarity(copy, reference) >= 0.95

    def test_a_strong_change_follows_the_prompt(self, engine: Engine) -> None:
        reference = draw(sample_scene(random.Random(0), HELD_OUT))
        (changed,) = paint(engine, ["a white star on a black background"], [0], reference=reference, denoise=0.95)
        assert look(changed).agrees(Combination(shape="star", colour="white", background="black")) == (True, True, True)
