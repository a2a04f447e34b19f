"""Image -> the bytes that are stored, and its thumbnail."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from ourvidz_sdxl.job import OutputFormat

# The OurVidz platform's thumbnails: WebP, longest edge 256 pixels, quality 85.
THUMBNAIL_EDGE = 256
THUMBNAIL_QUALITY = 85
JPEG_QUALITY = 95
PNG_LEVEL = 1  # lossless at every level; level 1 takes a quarter of the default's time for a tenth more bytes


@dataclass(frozen=True, kw_only=True)
class EncodedFile:
    content: bytes
    mime_type: str
    suffix: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def encode(image: Image.Image, output_format: OutputFormat) -> EncodedFile:
    """An RGB image as PNG (lossless), WebP (lossless) or JPEG (quality 95, no chroma subsampling)."""
    options: dict[OutputFormat, dict[str, Any]] = {
        OutputFormat.PNG: {"compress_level": PNG_LEVEL},
        OutputFormat.WEBP: {"lossless": True, "method": 0},
        OutputFormat.JPEG: {"quality": JPEG_QUALITY, "subsampling": 0},
    }
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
