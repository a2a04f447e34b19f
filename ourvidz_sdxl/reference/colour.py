"""Colour spaces -> sRGB: ICC profiles, and PNG's cICP, gAMA and cHRM chunks made into one.

Rendering intent is perceptual, as in browsers; for RGB matrix profiles all intents agree.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 8 * 1024 * 1024  # decompressed; a printer's profile has 1 to 3 MB

# The mode of the pixels that a profile of each colour space describes (ICC.1:2022, table 19).
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

Numbers = tuple[float, ...]

# xy of red, green, blue and white.
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES: Numbers = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *D65)  # ITU-R BT.709
CICP_PRIMARIES: dict[int, Numbers] = {  # ITU-T H.273, table 2
    1: SRGB_PRIMARIES,
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),  # ITU-R BT.2020
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65),  # Display P3
}

# Transfer functions as ICC parametric curves: type, then g, a, b, c, d (ICC.1:2022, 10.18).
SRGB_CURVE: Numbers = (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1
BT709_CURVE: Numbers = (3, 1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
CICP_CURVES: dict[int, Numbers] = {  # ITU-T H.273, table 3; PQ (16) and HLG (18) would need tone mapping
    **dict.fromkeys((1, 6, 14, 15), BT709_CURVE),
    4: (0, 2.2),
    5: (0, 2.8),
    8: (0, 1.0),
    13: SRGB_CURVE,
}
SRGB_GAMMA = 45455  # what writers of sRGB pictures put into gAMA (W3C PNG, third edition, 11.3.2.5)

# Chromatic adaptation to D50, the ICC's white (ICC.1:2022, annex E).
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1.0, 0.8249])


class ProfileUnusable(ValueError):
    """Profile that is broken, of another colour space than the pixels, or of none of ours."""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB picture in sRGB from one in `profile`'s colour space; `image` is L, RGB or CMYK. Raises ProfileUnusable."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = MODES[source.profile.xcolor_space.strip()]
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if image.mode != mode:
            raise ProfileUnusable(f"{mode} profile of {image.mode} pixels")
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return transform.apply(image)
    except (OSError, KeyError, ValueError, ImageCms.PyCMSError) as error:
        raise ProfileUnusable(type(error).__name__) from None


def png_profile(chunks: Mapping[bytes, bytes]) -> bytes | None:
    """ICC profile that PNG chunks give or describe, in the order of W3C PNG, third edition, 4.3.

    None for sRGB, which is also what a picture without any has; b"" for one that cannot be used.
    """
    try:
        if cicp := chunks.get(b"cICP"):
            primaries, transfer, matrix, full_range = cicp
            if (matrix, full_range) != (0, 1):
                return b""
            return _described(CICP_PRIMARIES[primaries], CICP_CURVES[transfer])
        if (iccp := chunks.get(b"iCCP")) is not None:
            return _inflate(iccp[iccp.index(b"\0") + 2 :])
        if b"sRGB" in chunks or not chunks.keys() & {b"gAMA", b"cHRM"}:
            return None
        xy, curve = SRGB_PRIMARIES, SRGB_CURVE
        if chrm := chunks.get(b"cHRM"):
            values = [value / 100_000 for value in struct.unpack(">8I", chrm)]
            xy = (*values[2:], *values[:2])
        if (gama := chunks.get(b"gAMA")) and (gamma := int.from_bytes(gama)) != SRGB_GAMMA:
            curve = (0, 100_000 / gamma)
        return _described(xy, curve)
    except (ValueError, KeyError, ZeroDivisionError, struct.error, zlib.error, np.linalg.LinAlgError):
        return b""


def _described(xy: Numbers, curve: Numbers) -> bytes | None:
    is_srgb = np.allclose(xy, SRGB_PRIMARIES, atol=0.001) and curve == SRGB_CURVE
    return None if is_srgb else matrix_profile(xy, curve)


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    profile = inflater.decompress(data, MAX_PROFILE_BYTES)
    return b"" if inflater.unconsumed_tail else profile


def matrix_profile(xy: Numbers, curve: Numbers) -> bytes:
    """Three-component matrix-based display profile (ICC.1:2022, 8.4.3) with one transfer function for all channels."""
    *rgb, white = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in zip(xy[::2], xy[1::2], strict=True))
    columns = np.array(rgb).T
    columns = columns * np.linalg.solve(columns, white)  # so that red + green + blue is white
    gain = (BRADFORD @ D50) / (BRADFORD @ white)
    red, green, blue = (np.linalg.inv(BRADFORD) @ np.diag(gain) @ BRADFORD @ columns).T
    kind, *numbers = curve
    para = b"para" + struct.pack(">IHH", 0, int(kind), 0) + _fixed(*numbers)
    tags = {
        name + b"XYZ": b"XYZ \0\0\0\0" + _fixed(*value) for name, value in zip((b"r", b"g", b"b"), (red, green, blue), strict=True)
    }
    tags |= {b"wtpt": b"XYZ \0\0\0\0" + _fixed(*D50)} | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), para)
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    header = struct.pack(">I4xI4s4s4s12x4s28x", 128 + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (header + _fixed(*D50)).ljust(128, b"\0") + body


def _fixed(*values: float) -> bytes:
    """s15Fixed16Number (ICC.1:2022, 4.7)."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))
