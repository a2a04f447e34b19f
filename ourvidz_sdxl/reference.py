"""Bytes of unknown origin -> a safe RGB image of the size that the plan asks for."""

from __future__ import annotations

import warnings
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from ourvidz_sdxl.errors import ReferenceInvalid
from ourvidz_sdxl.job import Fit

MAX_PIXELS = 40_000_000  # decoded, 120 MB of RGB; Pillow itself only warns, and only at twice that
TOO_LARGE = "The reference image is too large: 40 megapixels at most."
FORMATS = ("PNG", "JPEG", "WEBP")


def decode_reference(content: bytes) -> Image.Image:
    """Decodes PNG, JPEG or WebP, upright and without metadata; transparency is laid on white. Raises ReferenceInvalid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ReferenceInvalid(user_message=TOO_LARGE)
                upright = ImageOps.exif_transpose(image).convert("RGBA")
                clean = Image.new("RGB", upright.size, "white")  # a new image has none of the old one's metadata
                clean.paste(upright, mask=upright)
                return clean
    except ReferenceInvalid:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):  # Pillow's own limit, met before ours
        raise ReferenceInvalid(user_message=TOO_LARGE) from None
    except UnidentifiedImageError:
        raise ReferenceInvalid(user_message="The reference is not a PNG, JPEG or WebP image.") from None
    except Exception as error:  # noqa: BLE001  Pillow raises undocumented types on hostile bytes
        raise ReferenceInvalid(type(error).__name__, user_message="The reference image is damaged.") from None


def fit_reference(image: Image.Image, width: int, height: int, fit: Fit = Fit.COVER) -> Image.Image:
    """Brings the image to width x height pixels without distortion, centred: covering them, or whole on white."""
    if fit is Fit.CONTAIN:
        return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color="white")
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
