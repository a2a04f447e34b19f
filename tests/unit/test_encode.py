"""What leaves the worker decodes to what was painted."""

import hashlib
import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ourvidz_sdxl.encode import describe, encode, thumbnail
from ourvidz_sdxl.job import OutputFormat, Scheduler
from ourvidz_sdxl.plan import I2IMode, Plan


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


PLAN = Plan(
    mode=I2IMode.MODIFY,
    prompt="a café\nat night",
    negative_prompt="blur",
    width=1024,
    height=768,
    steps=25,
    guidance_scale=7.5,
    scheduler=Scheduler.DPMPP_2M_KARRAS,
    denoise=0.4,
    seeds=(41, 42),
)


def test_a_png_tells_how_it_was_made() -> None:
    words = describe(PLAN, 1, model="lustify", model_hash="abcdef0123456789", version="0.1.0")
    decoded = Image.open(BytesIO(encode(picture(64, 64), OutputFormat.PNG, words).content))
    assert decoded.info["parameters"] == (
        "a café\nat night\nNegative prompt: blur\n"
        "Steps: 25, Sampler: dpmpp_2m_karras, CFG scale: 7.5, Seed: 42, Size: 1024x768, Model hash: abcdef0123, Model: lustify, "
        "Denoising strength: 0.4, Version: ourvidz-sdxl 0.1.0"
    )
    told = json.loads(decoded.info["ourvidz"])
    assert (told["prompt"], told["Seed"], told["mode"]) == ("a café\nat night", 42, "modify")


def test_accelerations_that_change_a_picture_are_told_where_they_were_used() -> None:
    def told(**changes: Any) -> str:
        return describe(replace(PLAN, **changes), 0, model="lustify", model_hash="ab", version="0.1.0")["parameters"]

    assert ", Few-step LoRA: hyper-8, " in told(few_step_lora="hyper-8", guidance_scale=1.0, guidance_interval=(0.15, 0.9))
    assert ", Guidance interval: 0.15-0.9, " in told(guidance_interval=(0.15, 0.9))
    for unused in ({}, {"guidance_scale": 1.0, "guidance_interval": (0.15, 0.9)}, {"guidance_interval": (0.15, 1)}):
        words = told(**unused)
        assert "interval" not in words, "only the last 10 of 25 steps are painted"
        assert "LoRA" not in words


@pytest.mark.parametrize("output_format", [OutputFormat.WEBP, OutputFormat.JPEG])
def test_the_other_formats_tell_it_in_exif(output_format: OutputFormat) -> None:
    words = describe(PLAN, 0, model="lustify", model_hash="abcdef0123456789", version="0.1.0")
    decoded = Image.open(BytesIO(encode(picture(64, 64), output_format, words).content))
    comment = decoded.getexif().get_ifd(0x8769)[0x9286]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == words["parameters"]


@pytest.mark.parametrize("output_format", OutputFormat)
def test_without_words_a_file_and_its_thumbnail_tell_nothing(output_format: OutputFormat) -> None:
    for file in (encode(picture(64, 64), output_format), thumbnail(picture(64, 64))):
        decoded = Image.open(BytesIO(file.content))
        assert not decoded.getexif()
        assert not {"parameters", "ourvidz", "exif", "comment"} & decoded.info.keys()
