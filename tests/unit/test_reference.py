"""Bytes from strangers: an upright RGB image without metadata, or an error that its owner can read."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ourvidz_sdxl import reference
from ourvidz_sdxl.errors import ReferenceInvalid
from ourvidz_sdxl.reference import decode_reference, fit_reference


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_orientation_is_applied_and_metadata_dropped() -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010E] = "where I live"
    decoded = decode_reference(saved(image, "JPEG", exif=exif))
    assert (decoded.size, decoded.mode) == ((20, 40), "RGB")
    assert not decoded.getexif()


def test_transparency_is_laid_on_white() -> None:
    decoded = decode_reference(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PNG"),
        (b"<svg></svg>", "not a PNG"),
        (saved(Image.new("RGB", (8, 8)), "BMP"), "not a PNG"),
        (saved(Image.effect_noise((64, 64), 50), "PNG")[:800], "damaged"),
    ],
)
def test_what_is_no_image_is_refused_in_words(content: bytes, message: str) -> None:
    with pytest.raises(ReferenceInvalid) as caught:
        decode_reference(content)
    assert message in caught.value.user_message
    assert not caught.value.retryable


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MAX_PIXELS", 99)
    with pytest.raises(ReferenceInvalid, match="too large"):
        decode_reference(saved(Image.new("RGB", (10, 10)), "PNG"))


def test_fitting_covers_without_distortion() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))  # the middle third
    fitted = fit_reference(wide, 64, 64)
    assert fitted.size == (64, 64)
    assert np.array(fitted)[:, 4:-4].reshape(-1, 3).tolist() == [[0, 0, 255]] * (64 * 56)
