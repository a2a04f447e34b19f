"""Bytes of unknown origin -> a safe sRGB image of the size that the plan asks for."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageOps

from ourvidz_sdxl.errors import ReferenceInvalid
from ourvidz_sdxl.job import Fit
from ourvidz_sdxl.reference.colour import ProfileUnusable, to_srgb
from ourvidz_sdxl.reference.containers import Picture, Unreadable, read_picture

MAX_PIXELS = 40_000_000  # decoded, 120 MB of RGB; Pillow itself only warns, and only at twice that
NOT_AN_IMAGE = "The reference is not a PNG, JPEG or WebP image."
TOO_LARGE = "The reference image is too large: 40 megapixels at most."
DAMAGED = "The reference image is damaged."
INCOMPLETE = "The reference image is incomplete: its end is missing."

MIN_PRESENT = 0.5  # share of the rows that a truncated JPEG must still have
TRUNCATED = "reference_truncated", "The end of the reference image is missing; what is there was used."
NOT_CONVERTED = "reference_colours", "The reference's colour profile could not be used; its colours were taken as sRGB."

# x/257, rounded: 16 bits to 8.
TO_8_BITS = np.round(np.arange(2**16) / 257).astype(np.uint8)

# What brings a picture with each EXIF orientation upright (Exif 2.32, 4.6.4 A).
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Warn = Callable[[str, str], object]
"""Receives the stable code and the message of a warning for the job's user."""


def _ignore(_code: str, _message: str) -> None: ...


def decode_reference(content: bytes, warn: Warn = _ignore) -> Image.Image:
    """Decodes PNG, JPEG or WebP (of an animation the first frame) to 8-bit sRGB, upright, without metadata, on white.

    Metadata never decides whether a picture is read. A truncated JPEG is read, with a warning, if at least half of its
    rows are there. Raises ReferenceInvalid.
    """
    try:
        picture = read_picture(content)
    except Unreadable as error:
        raise ReferenceInvalid(str(error), user_message=DAMAGED) from None
    if picture is None:
        raise ReferenceInvalid(user_message=NOT_AN_IMAGE)
    try:
        with Image.open(BytesIO(picture.content), formats=(picture.kind,)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ReferenceInvalid(user_message=TOO_LARGE)
            image.load()
            if picture.truncated and picture.kind == "JPEG" and (share := _share_present(image, picture)) < 1:
                if share < MIN_PRESENT:
                    raise ReferenceInvalid(user_message=INCOMPLETE)
                warn(*TRUNCATED)
            decoded = _on_white(image, picture, warn)
    except ReferenceInvalid:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):  # Pillow's own limit, met before ours
        raise ReferenceInvalid(user_message=TOO_LARGE) from None
    except Exception as error:  # noqa: BLE001  Pillow raises undocumented types on hostile bytes
        message = INCOMPLETE if picture.truncated else DAMAGED
        raise ReferenceInvalid(type(error).__name__, user_message=message) from None
    turn = TRANSPOSE.get(picture.orientation)
    return decoded if turn is None else decoded.transpose(turn)


def fit_reference(image: Image.Image, width: int, height: int, fit: Fit = Fit.COVER) -> Image.Image:
    """Brings the image to width x height pixels without distortion, centred: covering them, or whole on white.

    Contained, an edge has at least one pixel: a 1 x 5000 picture in 128 x 128 is a line.
    """
    if fit is Fit.COVER:
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _on_white(image: Image.Image, picture: Picture, warn: Warn) -> Image.Image:
    """New RGB image in sRGB; what is transparent becomes white. It has nothing of the metadata of `image`."""
    opaque = None
    if image.mode == "1":
        image = image.convert("L")
    if picture.transparent:
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        opaque = Image.fromarray((pixels != np.array(picture.transparent)).any(-1))
    if image.mode.startswith("I"):
        image = Image.fromarray(TO_8_BITS[np.asarray(image)])
    elif image.mode == "P":
        image = image.convert("RGBA")
    if image.mode in {"LA", "RGBA"}:
        # a grey profile is one of grey pixels: they stay L until it was applied
        opaque, image = image.getchannel("A"), image.getchannel(0) if picture.grey else image.convert("RGB")
    if picture.profile is not None:
        try:
            image = to_srgb(image, picture.profile)
        except ProfileUnusable:
            warn(*NOT_CONVERTED)
    if image.mode != "RGB":
        image = image.convert("RGB")
    clean = Image.new("RGB", image.size, "white")
    clean.paste(image, mask=opaque)
    return clean


def _share_present(image: Image.Image, picture: Picture) -> float:
    """Share of the rows of a truncated JPEG that were decoded; 1.0 where only the mark of its end is missing.

    A row whose data are missing comes out otherwise with noise in their place. From the first such row on, libjpeg leaves medium
    grey what it has nothing of; a progressive JPEG can have the rest coarsely.
    """
    with Image.open(BytesIO(picture.with_another_end()), formats=(picture.kind,)) as other:
        other.load()
        box = ImageChops.difference(image, other).getbbox()
    if box is None and not picture.coarse:
        return 1.0
    if box is None:  # it ends between two scans: all rows are there, coarsely
        return 1 - 0.5 / image.height
    rows = np.asarray(image).reshape(image.height, -1)
    coloured = np.flatnonzero((rows.min(axis=1) < 127) | (rows.max(axis=1) > 129))
    present = max(box[1], int(coloured[-1]) + 1 if coloured.size else 0)
    return min(present, image.height - 0.5) / image.height  # below 1 in any case: the last rows lack something
