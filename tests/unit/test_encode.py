"""What leaves the worker decodes to what was painted."""

import hashlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ourvidz_sdxl.encode import encode, thumbnail
from ourvidz_sdxl.job import OutputFormat


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("output_format", [OutputFormat.PNG, OutputFormat.WEBP])
def test_png_and_webp_are_lossless(output_format: OutputFormat) -> None:
    image = picture(128, 64)
    file = encode(image, output_format)
    decoded = Image.open(BytesIO(file.content))
    assert np.array_equal(np.array(decoded.convert("RGB")), np.array(image))
    assert (file.mime_type, file.suffix) == (f"image/{output_format}", output_format)
    assert file.sha256 == hashlib.sha256(file.content).hexdigest()


def test_jpeg_is_close() -> None:
    image = Image.linear_gradient("L").convert("RGB")
    file = encode(image, OutputFormat.JPEG)
    difference = np.array(Image.open(BytesIO(file.content))).astype(int) - np.array(image)
    assert (file.mime_type, file.suffix) == ("image/jpeg", "jpg")
    assert np.abs(difference).max() <= 6


@pytest.mark.parametrize(("size", "small"), [((1344, 768), (256, 146)), ((832, 1216), (175, 256)), ((128, 128), (128, 128))])
def test_a_thumbnail_keeps_the_aspect_and_is_never_larger(size: tuple[int, int], small: tuple[int, int]) -> None:
    image = picture(*size)
    file = thumbnail(image)
    decoded = Image.open(BytesIO(file.content))
    assert (decoded.format, decoded.size) == ("WEBP", small)
    assert image.size == size, "the picture itself is left as it was"
