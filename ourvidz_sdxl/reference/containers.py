"""PNG, JPEG and WebP containers: pixel data apart from metadata.

Decoders parse text, EXIF and ICC blocks before the first pixel and reject the whole picture over a
damaged or large one. Here those blocks are removed first; orientation and colour space are read by
themselves. Linear in the size of the file; nothing but an ICC profile is decompressed.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ourvidz_sdxl.reference.colour import png_profile

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"  # EOI

RESTART_MARKER = re.compile(rb"\xff([\xd0-\xd7])")
NOISE = bytes(n * 37 % 255 for n in range(1, 255))  # entropy-coded data of no picture: no FF, which would begin a marker

# A JPEG marker; FF 00 and the restart markers D0..D7 belong to the entropy-coded data (ITU T.81, B.1).
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
SOF2, SOI, EOI, SOS, APP0, APP1, APP2, APP14, APP15, COM = 0xC2, 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
EXIF, ICC, JFIF, ADOBE = b"Exif\0\0", b"ICC_PROFILE\0", b"JFIF\0", b"Adobe"

# Each scan of a progressive JPEG costs a pass over all pixels, however few bytes it has; encoders
# write about ten. libjpeg-turbo's own fuzzers stop at 500.
MAX_SCANS = 100

# VP8X flags for ICC profile, EXIF and XMP chunks (RFC 9649, 2.7.1).
WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04
WEBP_PIXELS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}


class Unreadable(ValueError):
    """Container whose structure is broken or out of bounds."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Picture file without its metadata, and the metadata that changes what is seen.

    `orientation` is the EXIF value, 1 to 8. `profile` is an ICC profile, empty where colour
    information exists that cannot be used, None for sRGB. `transparent` is the one colour that
    counts as transparent in a PNG without alpha channel, in the units of Pillow's decoded pixels.
    `truncated` says that the file's end is missing. `grey` says that a PNG's pixels are grey, which Pillow decodes to RGBA where
    they have 16 bits and alpha.
    """

    kind: str
    content: bytes
    orientation: int = 1
    profile: bytes | None = None
    transparent: tuple[int, ...] = ()
    truncated: bool = False
    grey: bool = False
    coarse: bool = False  # a progressive JPEG without its last scans

    def with_another_end(self) -> bytes:
        """A truncated JPEG with noise after its data: it decodes as `content` does, but for pixels whose data are missing."""
        data = self.content.removesuffix(JPEG_END).removesuffix(b"\xff")  # which would make a marker of the noise
        scan = data[data.rfind(bytes((0xFF, SOS))) :]
        number = [0xD0, *(marker[1][0] + 1 for marker in RESTART_MARKER.finditer(scan))][-1]  # of the next restart marker, modulo 8
        return data + b"".join(NOISE + bytes((0xFF, 0xD0 | (number + n) % 8)) for n in range(8)) + JPEG_END


PNG_DEPTHS = {1, 2, 4, 8, 16}  # W3C PNG, third edition, 11.2.1
PALETTE_SIZE = 256


def read_picture(content: bytes) -> Picture | None:
    """Separates pixels and metadata; None for any other format. Raises Unreadable."""
    try:
        if content.startswith(PNG_SIGNATURE):
            return _read_png(content)
        if content.startswith(JPEG_SIGNATURE):
            return _read_jpeg(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _read_webp(content)
    except (struct.error, IndexError) as error:
        raise Unreadable(type(error).__name__) from None
    return None


def exif_orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first image file directory (TIFF 6.0; Exif 2.32); 1 if absent or broken."""
    exif = exif.removeprefix(EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        if order:
            (directory,) = struct.unpack_from(f"{order}I", exif, 4)
            (entries,) = struct.unpack_from(f"{order}H", exif, directory)
            for entry in range(entries):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, directory + 2 + 12 * entry)
                if tag == 0x0112:
                    return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _read_png(content: bytes) -> Picture:
    """Critical chunks as they are, so that Pillow checks their sums; of the others only a palette's alpha."""
    kept, data_begun, ended, depth, colour_type = [PNG_SIGNATURE], False, False, 0, 0
    others: dict[bytes, bytes] = {}
    for name, start, data in _png_chunks(content):
        if name == b"IHDR" and not depth:
            depth, colour_type = data[8], data[9]
            if depth not in PNG_DEPTHS:
                raise Unreadable(f"a bit depth of {depth}")
        if name in {b"IHDR", b"PLTE", b"IDAT"}:
            kept.append(content[start : start + 12 + len(data)])
            data_begun |= name == b"IDAT"
        elif name == b"IEND":
            ended = True
            break
        elif name == b"tRNS" and colour_type == 3:
            kept.append(_png_chunk(name, data[:PALETTE_SIZE]))
        elif not data_begun or name == b"eXIf":
            others.setdefault(name, data)
    kept.append(_png_chunk(b"IEND", b""))
    return Picture(
        kind="PNG",
        content=b"".join(kept),
        orientation=exif_orientation(others.get(b"eXIf", b"")),
        profile=png_profile(others),
        transparent=_transparent(others.get(b"tRNS", b""), depth, colour_type),
        truncated=not ended,
        grey=colour_type in {0, 4},
    )


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, position and data of each chunk; the data of the last one may be cut off."""
    start = len(PNG_SIGNATURE)
    while start + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        yield name, start, content[start + 8 : start + 8 + length]
        start += 12 + length


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _transparent(data: bytes, depth: int, colour_type: int) -> tuple[int, ...]:
    """The tRNS colour of a grey or RGB picture; () without one. Pillow decodes 16-bit RGB to the high bytes."""
    samples = {0: 1, 2: 3}.get(colour_type, 0)
    if not samples or len(data) < 2 * samples:
        return ()
    values = struct.unpack_from(f">{samples}H", data)
    if depth < 8:
        largest = 2**depth - 1
        return tuple((value & largest) * 255 // largest for value in values)
    return tuple(value >> 8 for value in values) if depth == 16 and samples == 3 else values


def _read_jpeg(content: bytes) -> Picture:
    """All segments but application data and comments. JFIF and Adobe segments say how colours are coded."""
    kept, position, exif, scans = [content[:2]], 2, b"", 0
    frame, headers = b"", list[bytes]()
    icc: dict[bytes, bytes] = {}
    while (marker := JPEG_MARKER.search(content, position)) and marker[1][0] != EOI:
        if scans:
            kept.append(content[position : marker.start()])  # entropy-coded data
        code, position = marker[1][0], marker.end()
        if code == SOI:
            continue
        length = int.from_bytes(content[position : position + 2])
        segment = content[position + 2 : position + length]
        position += length
        if code == APP1 and segment.startswith(EXIF):
            exif = exif or segment
        elif code == APP2 and segment.startswith(ICC):
            icc.setdefault(segment[12:13], segment[14:])
        plain = not APP0 <= code <= APP15 and code != COM
        colours = (code == APP0 and segment.startswith(JFIF) and len(segment) >= 14) or (
            code == APP14 and segment.startswith(ADOBE) and len(segment) >= 12
        )
        if plain or colours:
            kept.append(content[marker.start() : position])
        if code == SOF2:
            frame = segment
        if code == SOS:
            headers.append(segment)
        scans += code == SOS
        if scans > MAX_SCANS:
            raise Unreadable("too many scans")
    if scans:
        kept.append(content[position : marker.start() if marker else len(content)])
    return Picture(
        kind="JPEG",
        content=b"".join(kept) + JPEG_END,
        orientation=exif_orientation(exif),
        profile=b"".join(icc[number] for number in sorted(icc)) if icc else None,
        truncated=marker is None,
        coarse=bool(frame) and not _is_exact(frame, headers),
    )


def _is_exact(frame: bytes, scans: Iterable[bytes]) -> bool:
    """Whether the scans of a progressive JPEG give every coefficient to its last bit (ITU-T T.81, B.2.2, B.2.3 and G.1.1.1)."""
    exact: dict[int, set[int]] = {component: set() for component in frame[6::3]}
    for header in scans:
        components = header[1 : 1 + 2 * header[0] : 2]
        first, last, approximation = header[1 + 2 * header[0] :][:3]
        if approximation & 15 == 0:
            for component in components:
                exact.setdefault(component, set()).update(range(first, last + 1))
    return all(len(coefficients) == 64 for coefficients in exact.values())


def _read_webp(content: bytes) -> Picture:
    """Image and animation chunks, with the flags of the removed metadata cleared."""
    kept, position, truncated = [], 12, False
    others: dict[bytes, bytes] = {}
    while position + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, position)
        data = content[position + 8 : position + 8 + length]
        truncated |= len(data) < length
        position += 8 + length + length % 2
        if name == b"VP8X":
            data = bytes([data[0] & ~WEBP_METADATA_FLAGS]) + data[1:]
        if name in WEBP_PIXELS:
            kept.append(name + struct.pack("<I", length) + data + b"\0" * (length % 2))
        else:
            others.setdefault(name, data)
    (declared,) = struct.unpack_from("<I", content, 4)
    body = b"WEBP" + b"".join(kept)
    return Picture(
        kind="WEBP",
        content=b"RIFF" + struct.pack("<I", len(body)) + body,
        orientation=exif_orientation(others.get(b"EXIF", b"")),
        profile=others.get(b"ICCP"),
        truncated=truncated or len(content) < 8 + declared,
    )
