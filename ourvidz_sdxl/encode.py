"""Image -> the bytes that are stored, with what they tell about themselves, and the thumbnail, which tells nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image

from ourvidz_sdxl.job import OutputFormat
from ourvidz_sdxl.plan import Plan
from ourvidz_sdxl.png import png_bytes

# The OurVidz platform's thumbnails: WebP, longest edge 256 pixels, quality 85.
THUMBNAIL_EDGE = 256
THUMBNAIL_QUALITY = 85
JPEG_QUALITY = 95
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # Exif 2.3, tables 4 and 7


@dataclass(frozen=True, kw_only=True)
class EncodedFile:
    content: bytes = field(repr=False)
    mime_type: str
    suffix: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def describe(plan: Plan, index: int, *, model: str, model_hash: str, version: str) -> dict[str, str]:
    """What an image's file tells: `parameters` as A1111 writes it, which many programs read, and `ourvidz`, the same as JSON."""
    facts = {
        "Steps": plan.steps,
        "Sampler": plan.scheduler or "default",
        "CFG scale": plan.guidance_scale,
        "Seed": plan.seeds[index],
        "Size": f"{plan.width}x{plan.height}",
        "Model hash": model_hash[:10],
        "Model": model,
    }
    if plan.few_step_lora:
        facts["Few-step LoRA"] = plan.few_step_lora
    if plan.guidance_scale > 1 and len(plan.guided_steps) < plan.painted_steps:
        facts["Guidance interval"] = "-".join(f"{share:g}" for share in plan.guidance_interval)
    if plan.denoise < 1:
        facts["Denoising strength"] = round(plan.denoise, 4)
    facts["Version"] = f"ourvidz-sdxl {version}"
    negative = f"\nNegative prompt: {plan.negative_prompt}" if plan.negative_prompt else ""
    return {
        "parameters": f"{plan.prompt}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in facts.items()),
        "ourvidz": json.dumps({"prompt": plan.prompt, "negative_prompt": plan.negative_prompt, "mode": plan.mode} | facts),
    }


def encode(image: Image.Image, output_format: OutputFormat, words: Mapping[str, str] | None = None) -> EncodedFile:
    """An RGB image as PNG (lossless), WebP (lossless) or JPEG (quality 95, no chroma subsampling).

    `words` become text chunks in PNG; the other formats have room for `parameters` alone, in EXIF's UserComment.
    """
    if output_format is OutputFormat.PNG:
        return EncodedFile(content=png_bytes(image, words or {}), mime_type="image/png", suffix="png")
    options: dict[OutputFormat, dict[str, Any]] = {
        OutputFormat.WEBP: {"lossless": True, "method": 0},
        OutputFormat.JPEG: {"quality": JPEG_QUALITY, "subsampling": 0},
    }
    if words:
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + words["parameters"].encode("utf-16-be")
        options[output_format]["exif"] = exif
    suffix = "jpg" if output_format is OutputFormat.JPEG else output_format.value
    return EncodedFile(
        content=_bytes(image, output_format, options[output_format]), mime_type=f"image/{output_format}", suffix=suffix
    )


def thumbnail(image: Image.Image) -> EncodedFile:
    small = image.copy()
    small.thumbnail((THUMBNAIL_EDGE, THUMBNAIL_EDGE), Image.Resampling.LANCZOS)
    content = _bytes(small, OutputFormat.WEBP, {"quality": THUMBNAIL_QUALITY})
    return EncodedFile(content=content, mime_type="image/webp", suffix="thumb.webp")


def _bytes(image: Image.Image, output_format: OutputFormat, options: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=output_format.value.upper(), **options)
    return buffer.getvalue()
