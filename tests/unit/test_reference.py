"""Bytes from strangers: an upright RGB image in sRGB without metadata, or an error that its owner can read."""

from __future__ import annotations

import re
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ourvidz_sdxl import reference
from ourvidz_sdxl.errors import ReferenceInvalid
from ourvidz_sdxl.job import Fit
from ourvidz_sdxl.reference import decode_reference, fit_reference
from ourvidz_sdxl.reference.colour import CICP_PRIMARIES, SRGB_CURVE, SRGB_PRIMARIES, matrix_profile

CASES = Path(__file__).parents[1] / "cases" / "references"
SHOWN = (200, 40, 60)  # the colour that the files with a colour space stand for


class Warnings(list[str]):
    """Codes of the warnings that a decoding gave."""

    def __call__(self, code: str, message: str) -> None:
        assert message.endswith(".")
        self.append(code)


@pytest.fixture
def warn() -> Warnings:
    return Warnings()


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(ReferenceInvalid) as caught:
        decode_reference(content)
    assert not caught.value.retryable
    return caught.value.user_message


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(depth: int, colour_type: int, row: bytes, width: int, *chunks: bytes) -> bytes:
    """One row of packed samples as a PNG; `chunks` stand before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def pixels(content: bytes, warn: Callable[[str, str], None] = lambda code, message: None) -> list[tuple[int, ...]]:
    image = decode_reference(content, warn)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def near(one: tuple[int, ...], other: tuple[int, ...], by: int = 2) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= by


# Samples


def test_no_wider_samples_than_16_bit_grey_come_from_pillow() -> None:
    modes = {mode for mode, _ in PngImagePlugin._MODES.values()}
    assert modes == {"1", "L", "LA", "P", "I;16", "RGB", "RGBA"}
    for kind in ("PNG", "JPEG", "WEBP"):
        for mode in ("I", "F"):
            with suppress(OSError):  # what JPEG and PNG answer
                assert Image.open(BytesIO(saved(Image.new(mode, (4, 4)), kind))).mode == "RGB"


def test_16_bits_are_scaled_and_not_clipped() -> None:
    row = np.asarray(decode_reference((CASES / "gray16.png").read_bytes()))[0]
    assert [row[x].tolist() for x in (0, 32, 64, 127)] == [[0] * 3, [64] * 3, [129] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("depth", "colour_type", "row", "expected"),
    [
        (1, 0, b"\xa0", grey(255, 0, 255)),
        (2, 0, b"\x1b", grey(0, 85, 170, 255)),
        (4, 0, b"\x0f\x50", grey(0, 255, 85)),
        (8, 0, b"\x00\x80\xff", grey(0, 128, 255)),
        (16, 0, struct.pack(">4H", 0, 385, 386, 65535), grey(0, 1, 2, 255)),
        (16, 4, struct.pack(">4H", 0x8000, 0xFFFF, 0x8000, 0), grey(128, 255)),
        (8, 4, b"\x40\xff\x40\x00", grey(64, 255)),
        (16, 2, struct.pack(">3H", 200 * 257, 40 * 257, 60 * 257), [SHOWN]),
        (16, 6, struct.pack(">8H", *(v * 257 for v in (*SHOWN, 255, *SHOWN, 0))), [SHOWN, (255, 255, 255)]),
        (8, 6, bytes((*SHOWN, 255, *SHOWN, 0)), [SHOWN, (255, 255, 255)]),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
def test_every_depth_comes_to_8_bits_on_white(depth: int, colour_type: int, row: bytes, expected: list[tuple[int, ...]]) -> None:
    found = pixels(png(depth, colour_type, row, len(expected)))
    assert all(near(one, other, 1) for one, other in zip(found, expected, strict=True)), found


@pytest.mark.parametrize(
    ("depth", "colour_type", "row", "transparent"),
    [
        (1, 0, b"\x80", (0,)),
        (2, 0, b"\x90", (1,)),
        (4, 0, b"\x21", (1,)),
        (8, 0, b"\x21\x01", (1,)),
        (16, 0, b"\x20\x01\x20\x02", (0x2002,)),
        (8, 2, bytes((9, 9, 9, *SHOWN)), SHOWN),
        (16, 2, struct.pack(">6H", 9, 9, 9, *(v * 257 for v in SHOWN)), tuple(v * 257 for v in SHOWN)),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
@pytest.mark.parametrize("crc", [None, 0], ids=["right sum", "wrong sum"])
def test_a_transparent_colour_is_white(
    depth: int, colour_type: int, row: bytes, transparent: tuple[int, ...], crc: int | None
) -> None:
    trns = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent), crc)
    first, second = pixels(png(depth, colour_type, row, 2, trns))
    assert (first != (255, 255, 255) or depth == 1, second) == (True, (255, 255, 255))


def test_a_palette_may_have_transparent_entries() -> None:
    palette = chunk(b"PLTE", bytes((*SHOWN, 1, 2, 3, *SHOWN))) + chunk(b"tRNS", b"\xff\x00\x00", crc=0)
    assert pixels(png(8, 3, b"\0\1\2", 3, palette)) == [SHOWN, (255, 255, 255), (255, 255, 255)]


def test_transparency_is_laid_on_white() -> None:
    decoded = decode_reference(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_each_kind_of_jpeg_has_its_colours(mode: str) -> None:
    image = Image.new("RGB", (16, 16), SHOWN).convert(mode)
    expected = image.convert("RGB").getpixel((8, 8))
    assert near(pixels(saved(image, "JPEG", quality=95))[8], expected)  # type: ignore[arg-type]


# Colours


@pytest.mark.parametrize("name", ["icc_adobe_rgb.png", "icc_display_p3.png"])
def test_colours_are_what_a_browser_shows(name: str, warn: Warnings) -> None:
    assert all(near(pixel, SHOWN) for pixel in pixels((CASES / name).read_bytes(), warn))
    assert warn == []


def display_p3() -> bytes:
    return matrix_profile(CICP_PRIMARIES[12], SRGB_CURVE)


P3_NUMBERS = (185, 57, 64)  # of SHOWN in Display P3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_container_has_its_profile(kind: str, warn: Warnings) -> None:
    image = Image.new("RGB", (64, 64), P3_NUMBERS)
    options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    content = saved(image, kind, icc_profile=display_p3(), **options.get(kind, {}))
    assert near(pixels(content, warn)[9], SHOWN, 3)
    assert warn == []


def test_the_same_profile_agrees_with_little_cms() -> None:
    ours, theirs = matrix_profile(SRGB_PRIMARIES, SRGB_CURVE), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    for profile in (ours, theirs):
        converted = np.asarray(decode_reference(saved(image, "PNG", icc_profile=profile))).astype(int)
        assert np.abs(converted - np.asarray(image)).max() <= 1


def test_grey_under_a_profile_of_colours_stays_grey() -> None:
    for red, green, blue in pixels(png(8, 0, bytes(range(0, 256, 5)), 52, iccp(display_p3()))):
        assert max(red, green, blue) - min(red, green, blue) <= 1


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))


def grey_profile(gamma: float) -> bytes:
    """Monochrome input profile (ICC.1:2022, 8.3.4)."""
    curve = struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    head = struct.pack(">I4xI4s4s4s12x4s28x3i", 192, 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + white + curve


@pytest.mark.parametrize(
    ("depth", "colour_type", "row"),
    [
        (8, 0, b"\x80\x80"),
        (16, 0, b"\x80\x80" * 2),
        (8, 4, b"\x80\xff\x80\xff"),
        (16, 4, b"\x80\x80\xff\xff" * 2),
    ],
    ids=["L", "I;16", "LA", "LA of 16 bits"],
)
def test_a_grey_profile_is_converted(depth: int, colour_type: int, row: bytes, warn: Warnings) -> None:
    found = pixels(png(depth, colour_type, row, 2, iccp(grey_profile(1.0))), warn)  # linear light: 255 (128 / 255) ** (1 / 2.2)
    assert all(near(one, (188, 188, 188), 1) for one in found), found
    assert warn == []


@pytest.mark.parametrize("depth", [8, 16])
def test_what_is_transparent_under_a_grey_profile_is_white(depth: int, warn: Warnings) -> None:
    row = b"".join(bytes([value]) * (depth // 8) for value in (0x80, 255, 0x80, 0))
    shown, clear = pixels(png(depth, 4, row, 2, iccp(grey_profile(1.0))), warn)
    assert near(shown, (188, 188, 188), 1)
    assert clear == (255, 255, 255)
    assert warn == []


def cmyk_profile() -> bytes:
    """Printer profile (ICC.1:2022, 8.5) whose table has two points an ink: any ink alone is black but yellow, which is white."""
    paper, black = (255, 128, 128), (0, 128, 128)
    table = b"".join(bytes(black if c or m or k else paper) for c in (0, 1) for m in (0, 1) for _y in (0, 1) for k in (0, 1))
    ramps = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = struct.pack(">4s4xBBBx", b"mft1", 4, 3, 2) + identity + ramps * 4 + table + ramps * 3
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"A2B0", 176, len(lut))
    size = 176 + len(lut)
    head = struct.pack(">I4xI4s4s4s12x4s28x3i", size, 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + white + lut


def test_a_printers_profile_is_converted(warn: Warnings) -> None:
    yellow = saved(Image.new("CMYK", (16, 16), (0, 0, 255, 0)), "JPEG", icc_profile=cmyk_profile(), quality=100)
    cyan = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", icc_profile=cmyk_profile(), quality=100)
    assert near(pixels(yellow, warn)[8], (255, 255, 255), 3)
    assert near(pixels(cyan, warn)[8], (0, 0, 0), 3)
    assert warn == []


@pytest.mark.parametrize(
    "chunks",
    [
        (iccp(b"\0" * 2**21),),
        (iccp(b""),),
        (iccp(display_p3()[:200]),),
        (iccp(grey_profile(1.0)),),  # of another colour space than the pixels
        (iccp(b"\0" * 2**25),),  # a bomb
        (chunk(b"iCCP", b"no profile"),),
        (chunk(b"cICP", bytes((9, 16, 0, 1))),),  # PQ, high dynamic range
        (chunk(b"cICP", b"short"),),
        (chunk(b"cHRM", b"short"),),
        (chunk(b"cHRM", b"\0" * 32),),
        (chunk(b"gAMA", b"\0" * 4),),
    ],
    ids=["zeros", "empty", "cut off", "grey", "bomb", "no profile", "PQ", "bad cICP", "bad cHRM", "no white", "no gamma"],
)
def test_what_is_no_usable_colour_space_leaves_the_numbers_and_warns(chunks: tuple[bytes, ...], warn: Warnings) -> None:
    assert pixels(png(8, 2, bytes(SHOWN), 1, *chunks), warn) == [SHOWN]
    assert warn == ["reference_colours"]


def primaries(*xy: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in (*xy[6:], *xy[:6]))))


SRGB_CHUNK = chunk(b"sRGB", b"\0")
LINEAR = chunk(b"gAMA", struct.pack(">I", 100_000))
GAMMA_OF_SRGB = chunk(b"gAMA", struct.pack(">I", 45_455))


@pytest.mark.parametrize(
    ("chunks", "numbers"),
    [
        ((SRGB_CHUNK,), SHOWN),
        ((SRGB_CHUNK, LINEAR, primaries(*CICP_PRIMARIES[9])), SHOWN),
        ((GAMMA_OF_SRGB, primaries(*SRGB_PRIMARIES)), SHOWN),
        ((GAMMA_OF_SRGB, primaries(*CICP_PRIMARIES[12])), P3_NUMBERS),
        ((LINEAR,), (147, 5, 11)),
        ((LINEAR, iccp(display_p3())), P3_NUMBERS),
        ((chunk(b"cICP", bytes((12, 13, 0, 1))), SRGB_CHUNK), P3_NUMBERS),
        ((chunk(b"cICP", bytes((1, 13, 0, 1))), LINEAR), SHOWN),
    ],
    ids=["sRGB", "sRGB first", "sRGB's gamma", "cHRM", "gAMA", "iCCP first", "cICP first", "cICP sRGB"],
)
def test_the_chunks_of_a_png_say_its_colours(chunks: tuple[bytes, ...], numbers: tuple[int, ...], warn: Warnings) -> None:
    [pixel] = pixels(png(8, 2, bytes(numbers), 1, *chunks), warn)
    assert near(pixel, SHOWN, 4), pixel  # 4: linear light has few levels in the dark
    assert warn == []


# Metadata


@pytest.mark.parametrize("name", ["bad_crc_anc.png", "icc_2mb.png", "itxt_2mb.png"])
def test_no_metadata_decides_whether_a_picture_is_read(name: str) -> None:
    row = np.asarray(decode_reference((CASES / name).read_bytes()))[10]
    assert row[::32].tolist() == [[0, 20, 64], [64, 20, 64], [128, 20, 64], [192, 20, 64]]


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"pHYs", b"tIME", b"sBIT", b"bKGD", b"acTL", b"prIV"])
@pytest.mark.parametrize("data", [b"", b"\xff" * 7, b"Comment\0\0" + zlib.compress(b"\0" * 2**26)], ids=["empty", "noise", "bomb"])
def test_any_ancillary_chunk_may_be_damaged(name: bytes, data: bytes) -> None:
    assert pixels(png(8, 2, bytes(SHOWN), 1, chunk(name, data, crc=1))) == [SHOWN]


def exif(orientation: int, order: str = ">") -> bytes:
    """EXIF with an orientation and a rational of -1/0."""
    magic = {">": b"MM\0*", "<": b"II*\0"}[order]
    entries = struct.pack(f"{order}HHHIHH HHII I", 2, 0x0112, 3, 1, orientation, 0, 0x011A, 10, 1, 38, 0)
    return b"Exif\0\0" + magic + struct.pack(f"{order}I", 8) + entries + struct.pack(f"{order}ii", -1, 0)


def test_a_bad_rational_does_not_hide_the_orientation() -> None:
    stored = Image.open(CASES / "exif_bad_rational.jpg").convert("RGB")
    decoded = decode_reference((CASES / "exif_bad_rational.jpg").read_bytes())
    assert np.array_equal(np.asarray(decoded), np.asarray(stored.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_in_every_container(kind: str, order: str, orientation: int) -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 16, 8))
    upright = {1: image, 3: image.rotate(180), 6: image.rotate(-90, expand=True), 8: image.rotate(90, expand=True)}
    mirrored = {2: 1, 4: 3, 5: 6, 7: 8}
    expected = upright.get(orientation) or upright[mirrored[orientation]].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    decoded = decode_reference(saved(image, kind, exif=exif(orientation, order), **({"lossless": True} if kind == "WEBP" else {})))
    assert decoded.size == expected.size
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).max() <= 2
    assert not decoded.getexif()
    assert decoded.info == {}


@pytest.mark.parametrize(
    "broken", [b"", b"Exif", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", exif(0)[6:], exif(9)[6:]]
)
def test_a_broken_exif_block_turns_nothing(broken: bytes) -> None:
    image = Image.new("RGB", (32, 16), SHOWN)
    for kind in ("PNG", "JPEG", "WEBP"):
        assert decode_reference(saved(image, kind, exif=b"Exif\0\0" + broken)).size == (32, 16)


def jpeg_segment(code: int, data: bytes) -> bytes:
    return b"\xff" + bytes([code]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "segment",
    [
        jpeg_segment(0xE0, b"JFIF"),
        jpeg_segment(0xE1, b"Exif\0\0" + b"\xff" * 60_000),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
        jpeg_segment(0xE2, b"ICC_PROFILE\0"),
        jpeg_segment(0xE2, b"MPF\0broken"),
        jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\xff\xff\xff"),
        jpeg_segment(0xEE, b"Adobe"),
        jpeg_segment(0xFE, b"\0" * 65_000),
        b"\xff" * 1000,
    ],
    ids=["JFIF", "EXIF", "XMP", "ICC", "MPF", "IPTC", "Adobe", "comment", "fill bytes"],
)
def test_any_application_segment_of_a_jpeg_may_be_damaged(segment: bytes) -> None:
    whole = saved(Image.new("RGB", (16, 16), SHOWN), "JPEG", quality=95)
    assert near(pixels(whole[:2] + segment + whole[2:])[8], SHOWN)


def test_what_follows_the_end_of_a_jpeg_is_not_read() -> None:
    """Phones append further pictures (MPO) and films there."""
    first, second = (saved(Image.new("RGB", (16, 16), colour), "JPEG") for colour in ("white", "black"))
    assert pixels(first + second)[8] == (255, 255, 255)
    mpo = BytesIO()
    Image.new("RGB", (16, 16), "white").save(mpo, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert pixels(mpo.getvalue())[8] == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (SHOWN, "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert pixels(saved(frames[0], kind, save_all=True, append_images=frames[1:], exif=exif(6), **options))[8] == SHOWN


# Damage


def test_a_truncated_jpeg_is_read_with_a_warning(warn: Warnings) -> None:
    decoded = np.asarray(decode_reference((CASES / "trunc.jpg").read_bytes(), warn))
    assert warn == ["reference_truncated"]
    assert near(tuple(decoded[5, 127].tolist()), (252, 11, 66), 4)  # the upper part is there


def grey_below(mode: str = "RGB") -> Image.Image:
    """Noise in the upper quarter, and medium grey below it, which is what libjpeg makes of missing rows."""
    image = Image.new("RGB", (128, 128), (128, 128, 128))
    image.paste(Image.effect_noise((128, 32), 60).convert("RGB"), (0, 0))
    return image.convert(mode)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_without_its_end_mark_is_whole(mode: str, options: dict[str, Any], warn: Warnings) -> None:
    for image in (grey_below(mode), Image.effect_noise((100, 75), 60).convert(mode)):
        whole = saved(image, "JPEG", **options)
        assert whole.endswith(b"\xff\xd9")
        for cut in (1, 2):
            assert decode_reference(whole[:-cut], warn).tobytes() == decode_reference(whole).tobytes()
    assert warn == []


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"optimize": True}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_whose_last_rows_are_missing_is_known_by_its_data(mode: str, options: dict[str, Any]) -> None:
    noise = Image.effect_noise((128, 128), 60).convert(mode)
    whole = saved(noise, "JPEG", **options)
    for missing in (8, len(whole) // 50, len(whole) // 10):
        given = Warnings()
        decode_reference(whole[: len(whole) - 2 - missing], given)
        assert given == ["reference_truncated"], missing
    scan = whole.index(b"\xff\xda")
    assert refusal(whole[: scan + (len(whole) - scan) // 4]) == reference.INCOMPLETE


def test_a_jpeg_cut_off_between_restart_intervals_is_truncated(warn: Warnings) -> None:
    whole = saved(Image.effect_noise((128, 128), 60), "JPEG", restart_marker_rows=1)
    decode_reference(whole[: whole.rindex(b"\xff\xd6")], warn)  # 16 rows of blocks: the last marker is D6
    assert warn == ["reference_truncated"]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_which_less_than_half_is_there_is_refused(progressive: bool, warn: Warnings) -> None:
    noise = Image.effect_noise((512, 512), 60)
    whole = saved(noise, "JPEG", progressive=progressive)
    for kept in (10, 50):
        assert refusal(whole[: whole.index(b"\xff\xda") + kept]) == reference.INCOMPLETE
    assert decode_reference(whole[: int(len(whole) * 0.8)], warn).size == (512, 512)
    assert warn == ["reference_truncated"]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_another_truncated_picture_is_refused_and_says_so(kind: str) -> None:
    whole = saved(Image.effect_noise((64, 64), 50), kind)
    for share in (0.3, 0.9):
        assert refusal(whole[: int(len(whole) * share)]) == reference.INCOMPLETE


def test_a_png_whose_end_mark_is_missing_is_read() -> None:
    assert pixels(png(8, 2, bytes(SHOWN), 1)[:-12]) == [SHOWN]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", reference.NOT_AN_IMAGE),
        (b"<svg></svg>", reference.NOT_AN_IMAGE),
        (saved(Image.new("RGB", (8, 8)), "BMP"), reference.NOT_AN_IMAGE),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, reference.INCOMPLETE),
        (png(8, 2, bytes(SHOWN), 1).replace(b"IHDR", b"IHDX"), reference.DAMAGED),
        (png(8, 2, b"", 1), reference.DAMAGED),
        (b"\xff\xd8\xff\xd9", reference.DAMAGED),
        (b"\xff\xd8\xff\xe1", reference.INCOMPLETE),
        (b"RIFF\4\0\0\0WEBP", reference.DAMAGED),
        (b"RIFF\x0e\0\0\0WEBPVP8X\0\0\0\0", reference.DAMAGED),
    ],
)
def test_what_is_no_image_is_refused_in_words(content: bytes, message: str) -> None:
    assert refusal(content) == message


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MAX_PIXELS", 99)
    with pytest.raises(ReferenceInvalid, match="too large"):
        decode_reference(saved(Image.new("RGB", (10, 10)), "PNG"))


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    whole = saved(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    assert refusal(whole[:last] + whole[last:-2] * 10_000 + whole[-2:]) == reference.DAMAGED


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8" + b"\xff" * 2**24,
        b"\xff\xd8\xff\xda\0\2" + b"\xff\0" * 2**23,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 2**18,
        b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"") * 2**18,
        b"RIFF\xff\xff\xff\x7fWEBP" + b"junk\0\0\0\0" * 2**18,
    ],
    ids=["fill bytes", "stuffed bytes", "segments", "chunks", "RIFF chunks"],
)
def test_a_hostile_container_is_refused_in_linear_time(content: bytes) -> None:
    started = time.process_time()
    refusal(content)
    assert time.process_time() - started < 10  # quadratic would take hours


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_a_picture_or_a_refusal(kind: str) -> None:
    whole = saved(Image.effect_noise((32, 32), 50).convert("RGB"), kind, exif=exif(6), icc_profile=display_p3())
    generator = np.random.default_rng(7)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 4):
            damaged[place] = generator.integers(256)
        with suppress(ReferenceInvalid):
            assert decode_reference(bytes(damaged)).mode == "RGB"


# Sizes


def test_fitting_covers_without_distortion() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))  # the middle third
    fitted = fit_reference(wide, 64, 64)
    assert fitted.size == (64, 64)
    assert np.array(fitted)[:, 4:-4].reshape(-1, 3).tolist() == [[0, 0, 255]] * (64 * 56)


def test_fitting_contains_on_white() -> None:
    fitted = np.asarray(fit_reference(Image.new("RGB", (300, 100), "blue"), 120, 120, Fit.CONTAIN))
    assert fitted[[0, 39, 40, 79, 80, 119], 60].tolist() == [[255] * 3, [255] * 3, [0, 0, 255], [0, 0, 255], [255] * 3, [255] * 3]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [(128, 128), (1024, 1024), (128, 2048), (2048, 128)])
def test_the_narrowest_picture_is_seen(turned: bool, size: tuple[int, int]) -> None:
    narrow = decode_reference((CASES / "narrow_1x5000.png").read_bytes())
    image = narrow.transpose(Image.Transpose.ROTATE_90) if turned else narrow
    contained, covering = fit_reference(image, *size, Fit.CONTAIN), fit_reference(image, *size)
    assert contained.size == covering.size == size
    assert (np.asarray(contained) != 255).any()
    assert (np.asarray(covering) != 255).any(axis=-1).all()


def with_chunk_before_data(content: bytes, name: bytes, data: bytes) -> bytes:
    at = content.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content[:at] + chunk + content[at:]


def coloured_png(mode: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 60)).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def test_a_depth_that_png_does_not_have_is_no_picture() -> None:
    content = bytearray(with_chunk_before_data(coloured_png("L"), b"tRNS", b"\0\0"))
    content[24] = 0  # the bit depth, in IHDR
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    with pytest.raises(ReferenceInvalid):
        decode_reference(bytes(content))


def test_a_palettes_alpha_may_be_longer_than_the_palette() -> None:
    assert decode_reference(with_chunk_before_data(coloured_png("P"), b"tRNS", b"\xff" * 300)).size == (8, 8)


def test_a_profile_whose_colour_space_is_no_text_falls_back_to_the_numbers() -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16] = 0xFF
    stream, warned = BytesIO(), list[str]()
    Image.new("RGB", (8, 8), (200, 30, 60)).save(stream, "PNG", icc_profile=bytes(profile))
    picture = decode_reference(stream.getvalue(), lambda code, _message: warned.append(code))
    assert (picture.getpixel((4, 4)), warned) == ((200, 30, 60), ["reference_colours"])


def test_a_progressive_jpeg_that_ends_between_two_scans_is_read_with_a_warning() -> None:
    stream = BytesIO()
    Image.effect_mandelbrot((200, 160), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    scans = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    for scan in scans[1:]:
        warned: list[str] = []
        tables = content.find(b"\xff\xc4", scans[scans.index(scan) - 1], scan)  # what may stand between two scans
        decode_reference(content[: tables if tables > 0 else scan], lambda code, _message, warned=warned: warned.append(code))  # type: ignore[misc]
        assert warned == ["reference_truncated"]
