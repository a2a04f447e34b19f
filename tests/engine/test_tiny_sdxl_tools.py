"""The little world that the bundled model learned: its drawings, its captions, its judge, and what was kept from training."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ourvidz_sdxl.similarity import similarity
from tools.tiny_sdxl.captions import caption
from tools.tiny_sdxl.evaluate import count
from tools.tiny_sdxl.judge import look, nearest_colour
from tools.tiny_sdxl.learning import Budget, Learner
from tools.tiny_sdxl.pool import SIZES, Block, describe, fill_shelves, from_bytes, picture, plan_blocks
from tools.tiny_sdxl.raster import coverage, free_scenes
from tools.tiny_sdxl.shapes import (
    HELD_OUT,
    OUTLINES,
    PALETTE,
    SHAPES,
    TRAINING,
    Combination,
    Scene,
    all_combinations,
    draw,
    mask,
    sample_scene,
)
from tools.tiny_sdxl.tokenizer import CONTEXT_LENGTH, END, START, learn_vocabulary, load_tokenizers, save_tokenizers

RED_CIRCLE = Scene(
    combination=Combination(shape="circle", colour="red", background="blue"),
    size="medium",
    place="centre",
    centre=(0.5, 0.5),
    radius=0.3,
)


def scenes(number: int, seed: int = 0) -> list[Scene]:
    """Scenes of any combination, held out or not."""
    rng = random.Random(seed)
    return [sample_scene(rng, all_combinations()) for _ in range(number)]


def noisy(image: Image.Image, deviation: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, deviation, (*image.size[::-1], 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


class TestSplit:
    def test_280_combinations_of_which_100_are_held_out(self) -> None:
        assert len(set(all_combinations())) == 280
        assert len(HELD_OUT) == 100
        assert set(HELD_OUT).isdisjoint(TRAINING)
        assert set(HELD_OUT) | set(TRAINING) == set(all_combinations())

    def test_it_is_the_split_that_the_bundled_model_was_trained_with(self) -> None:
        assert HELD_OUT[0].prompt == "a red circle on a blue background"
        assert HELD_OUT[-1].prompt == "a black cross on a purple background"
        assert sum(index for index, combination in enumerate(all_combinations()) if combination in HELD_OUT) == 13_963

    def test_training_shows_every_shape_in_every_colour_and_every_pair_of_colours(self) -> None:
        assert len({(c.shape, c.colour) for c in TRAINING}) == len(SHAPES) * len(PALETTE)
        assert len({(c.shape, c.background) for c in TRAINING}) == len(SHAPES) * len(PALETTE)
        assert len({(c.colour, c.background) for c in TRAINING}) == len(PALETTE) * (len(PALETTE) - 1)

    def test_no_training_scene_is_a_held_out_combination(self) -> None:
        rng = random.Random(0)
        assert {sample_scene(rng).combination for _ in range(5000)} == set(TRAINING)


class TestDrawing:
    @pytest.mark.parametrize("shape", OUTLINES)
    def test_outlines_are_centred_and_inside_the_unit_square(self, shape: str) -> None:
        low, high = OUTLINES[shape].min(axis=0), OUTLINES[shape].max(axis=0)
        np.testing.assert_allclose(low, -high)
        assert (high <= 1.0).all()

    def test_a_red_circle_on_a_blue_background(self) -> None:
        image = draw(RED_CIRCLE)
        assert image.size == (128, 128)
        assert image.getpixel((64, 64)) == PALETTE["red"]
        assert image.getpixel((2, 2)) == PALETTE["blue"]

    @pytest.mark.parametrize(("width", "height"), [(128, 128), (168, 96), (96, 168)])
    def test_shapes_keep_clear_of_the_border(self, width: int, height: int) -> None:
        for scene in scenes(100):
            pixels = np.asarray(draw(scene, width=width, height=height))
            border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3), pixels[:, :3].reshape(-1, 3)])
            assert (border == PALETTE[scene.combination.background]).all()

    @pytest.mark.parametrize("shape", SHAPES)
    def test_torch_and_pillow_draw_the_same(self, shape: str) -> None:
        where = {"width": 96, "height": 64}
        pillow = mask(shape, **where, centre=(50.3, 30.6), half_extent=(21.7, 21.7))
        drawn = coverage(torch.tensor([SHAPES.index(shape)]), torch.tensor([[50.3, 30.6]]), torch.tensor([21.7]), **where)
        difference = np.abs(np.asarray(pillow) / 255 - drawn[0, 0].numpy())
        assert difference.mean() < 0.003
        assert difference.max() < 0.35, "an edge is more than a third of a pixel off"

    def test_free_scenes_are_pictures(self) -> None:
        drawn = free_scenes(4, width=40, height=32, generator=torch.Generator().manual_seed(0))
        assert drawn.shape == (4, 3, 32, 40)
        assert drawn.abs().max() <= 1
        assert drawn.std(dim=(1, 2, 3)).min() > 0.05


class TestJudge:
    @pytest.mark.parametrize("deviation", [0.0, 3.0, 6.0])
    def test_it_names_what_was_drawn(self, deviation: float) -> None:
        for scene in scenes(150):
            verdict = look(noisy(draw(scene), deviation))
            assert verdict.agrees(scene.combination) == (True, True, True), (scene, verdict)

    def test_small_shapes_in_other_formats(self) -> None:
        for scene in scenes(60, seed=1):
            assert look(draw(scene, width=192, height=128)).agrees(scene.combination) == (True, True, True), scene

    def test_a_picture_without_a_shape(self) -> None:
        verdict = look(Image.new("RGB", (128, 128), PALETTE["green"]))
        assert (verdict.background, verdict.colour, verdict.shape) == ("green", None, None)

    def test_it_says_what_is_there_and_not_what_was_asked_for(self) -> None:
        asked = Combination(shape="square", colour="red", background="green")
        assert look(draw(RED_CIRCLE)).agrees(asked) == (False, True, False)
        assert str(count([draw(RED_CIRCLE)] * 2, [asked, RED_CIRCLE.combination])) == "shape 1, colour 2, background 1 of 2"

    def test_nearest_colours(self) -> None:
        assert all(nearest_colour(rgb) == name for name, rgb in PALETTE.items())
        assert nearest_colour((255, 0, 0)) == "red"
        assert nearest_colour((0, 0, 255)) == "blue"

    def test_similarity(self) -> None:
        image = draw(RED_CIRCLE)
        assert similarity(image, image) == pytest.approx(1.0)
        assert 0.3 < similarity(image, noisy(image, 10)) < 0.95
        assert similarity(image, draw(scenes(1)[0])) < 0.95


class TestCaptions:
    def test_a_full_caption_names_the_scene(self) -> None:
        rng = random.Random(0)
        texts = [caption(RED_CIRCLE, rng) for _ in range(2000)]
        assert texts.count("a red circle on a blue background") > 50
        assert 0.04 < texts.count("") / len(texts) < 0.08
        others = [name for name in PALETTE if name not in ("red", "blue")]
        assert not [text for text in texts if re.search(rf"\b({'|'.join(others)}|square|star|large|tiny|left)\b", text)]

    def test_an_unusual_place_or_size_is_always_named(self) -> None:
        rng = random.Random(1)
        scene = Scene(combination=RED_CIRCLE.combination, size="tiny", place="top left", centre=(0.25, 0.25), radius=0.1)
        texts = [caption(scene, rng) for _ in range(500)]
        full = [text for text in texts if re.search("red.*(circle|disc|ball)", text) and "blue" in text]
        assert len(full) > 300
        assert all(re.search(r"tiny|very small", text) and re.search(r"(top|upper) left", text) for text in full)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tokenizers, learned and saved afresh."""
    folder = tmp_path_factory.mktemp("tokenizers")
    save_tokenizers(learn_vocabulary(), folder / "tokenizer", folder / "tokenizer_2")
    return folder


class TestTokenizers:
    def test_the_vocabulary_is_that_of_the_bundled_model(self, folder: Path) -> None:
        bundled = Path(__file__).parents[2] / "models" / "tiny-sdxl"
        for file in ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/vocab.json"):
            assert (folder / file).read_text(encoding="utf-8") == (bundled / file).read_text(encoding="utf-8")

    def test_the_words_of_captions_are_single_tokens(self, folder: Path) -> None:
        first, _ = load_tokenizers(folder)
        for word in (*PALETTE, *SHAPES, "background", "large", "tiny", "corner", "masterpiece", "blurry"):
            assert len(first(word).input_ids) == 3, word

    def test_they_fill_up_as_sdxls_do(self, folder: Path) -> None:
        first, second = load_tokenizers(folder)
        one, two = (t("a red circle", padding="max_length").input_ids for t in (first, second))
        assert len(one) == len(two) == CONTEXT_LENGTH
        assert one[:5] == two[:5]
        assert one[0] == first.convert_tokens_to_ids(START)
        assert set(one[4:]) == {first.convert_tokens_to_ids(END)}
        assert set(two[5:]) == {0}

    @pytest.mark.parametrize("text", ["Ein grüner Kreis", "红色的圆", "🙂!!", "a\tb\n<lora:x:1>", "don't"])
    def test_any_text_has_tokens_and_comes_back(self, folder: Path, text: str) -> None:
        first, _ = load_tokenizers(folder)
        back = first.decode(first(text).input_ids, skip_special_tokens=True)
        assert re.sub(r"\s", "", back) == re.sub(r"\s", "", text.lower())


class TestPool:
    def test_the_plan_is_fixed_and_has_every_size(self) -> None:
        blocks = plan_blocks(20_000, seed=3)
        assert blocks == plan_blocks(20_000, seed=3)
        assert blocks != plan_blocks(20_000, seed=4)
        assert {(block.width, block.height) for block in blocks} == set(SIZES)
        assert sum(SIZES.values()) == pytest.approx(1.0)

    def test_a_block_is_what_its_seed_says(self, folder: Path) -> None:
        block = Block(seed=5, count=12, width=96, height=64, original_width=48, original_height=32)
        described = describe(block, folder / "tokenizer")
        again = describe(block, folder / "tokenizer")
        np.testing.assert_array_equal(described.ids, again.ids)
        np.testing.assert_array_equal(described.colour, again.colour)
        assert described.ids.shape == (12, CONTEXT_LENGTH)
        assert block.time_ids == (32, 48, 0, 0, 64, 96)
        assert picture(described, torch.device("cpu")).shape == (12, 3, 64, 96)

    def test_a_shelf_holds_what_was_described(self, folder: Path) -> None:
        blocks = [
            Block(seed=n, count=2, width=width, height=height, original_width=width, original_height=height)
            for n, (width, height) in enumerate(SIZES)
        ]
        described = [describe(block, folder / "tokenizer") for block in blocks]
        shelves = fill_shelves(described, free_share=0.5, generator=torch.Generator().manual_seed(0))
        assert [(shelf.pictures.shape[3], shelf.pictures.shape[2]) for shelf in shelves] == list(SIZES)
        assert [len(shelf.free_pictures) for shelf in shelves] == [1] * len(SIZES)
        error = from_bytes(shelves[0].pictures) - picture(described[0], torch.device("cpu"))
        assert error.abs().max() <= 1 / 127.5


def test_a_learner_learns_and_ends_with_its_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([[1.0], [-2.0]])
    modules = nn.ModuleList([nn.Linear(2, 1)])

    def loss(working: nn.ModuleList, x: Tensor) -> Tensor:
        error: Tensor = working[0].forward(x) - x @ wanted
        return (error**2).mean()

    learner = Learner(modules, loss, rate=0.05, budget=Budget(steps=400))
    losses = []
    while learner.progress < 1:
        losses.append(float(learner.step(torch.randn(32, 2, generator=generator))))
    assert learner.steps_done == len(losses) == 400
    assert losses[-1] < losses[0] / 100
    torch.testing.assert_close(next(modules.parameters()).detach(), wanted.T, atol=0.1, rtol=0.0)
    assert not torch.equal(next(learner.average.parameters()), next(modules.parameters())), "the average lags behind"


def test_a_learner_ends_with_its_time() -> None:
    modules = nn.ModuleList([nn.Linear(1, 1)])
    learner = Learner(modules, lambda _: torch.zeros(()), rate=0.1, budget=Budget(steps=10**9, seconds=1e-9))
    assert learner.progress == 1
