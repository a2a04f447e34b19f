"""Similarity is the structural similarity that everybody means."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ourvidz_sdxl.similarity import similarity


def picture(seed: int, size: tuple[int, int] = (160, 96)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_scikit_image(seed: int) -> None:
    from skimage.metrics import structural_similarity  # here, since every process of the tests would wait for it

    a, b = picture(seed), Image.blend(picture(seed), picture(seed + 10), 0.4)
    expected = structural_similarity(np.asarray(a.convert("L")), np.asarray(b.convert("L")))
    assert similarity(a, b) == pytest.approx(expected, abs=1e-3)


def test_the_same_is_one_and_the_order_does_not_matter() -> None:
    a, b = picture(0), picture(1)
    assert similarity(a, a) == pytest.approx(1)
    assert similarity(a, b) == pytest.approx(similarity(b, a))
    assert similarity(a, b) < 0.9


def test_large_images_are_compared_small() -> None:
    a = picture(0, (64, 64)).resize((1024, 1024))
    assert similarity(a, a.filter(ImageFilter.GaussianBlur(1))) > 0.95
