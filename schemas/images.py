"""
Encoded images, checked by their first bytes before anything decodes them: size, format and how
many pixels they would become. Formats: JPEG (ITU T.81), PNG (ISO 15948), WebP (RFC 9649) and GIF
(89a).

Pure: nothing is decoded, and no more is read than headers and lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from schemas.errors import Reason, Rejected

JPEG: Final = "image/jpeg"
PNG: Final = "image/png"
WEBP: Final = "image/webp"
GIF: Final = "image/gif"
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
# Markers of JPEG: those that start a frame (C4, C8 and CC do not), and those that come after it, of
# which most have no length.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LATER: Final = frozenset({0x00, 0x01, *range(0xD0, 0xDB)})

# A file of tiny pieces would take as many steps as it has bytes; blocks of GIF have up to 255.
_FEW_PIECES: Final = 1000
_PIECE_BYTES: Final = 100  # on average, in a file of more pieces than those


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How much one image may bring."""

    max_bytes: int = 4 << 20
    max_pixels: int = 16_000_000  # of all its frames together: 48 MB as RGB

    def __post_init__(self) -> None:
        for name, value in (("max_bytes", self.max_bytes), ("max_pixels", self.max_pixels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What an image says of itself."""

    content_type: str
    width: int
    height: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Of all frames together, as a decoder would make them."""
        return self.width * self.height * self.frames


def check_image(data: bytes, content_type: str | None, limits: ImageLimits) -> ImageFacts:
    """
    What the image is, if it may be decoded.

    Args:
        content_type: as declared, parameters allowed; None: not said.

    Raises:
        Rejected: too large, of no format that is taken, of another one than declared, or of too
            many pixels or none; with what was found and what was expected.

    >>> check_image(b"GIF89a" + bytes([2, 0, 3, 0, 0, 0, 0]) + b";", None, ImageLimits()).height
    3
    >>> check_image(b"GIF89a" + bytes(7) + b";", "image/png", ImageLimits())
    Traceback (most recent call last):
    schemas.errors.Rejected: out-of-range: the image is image/gif, declared was 'image/png'
    """
    if len(data) > limits.max_bytes:
        detail = f"an image of {len(data)} bytes, at most {limits.max_bytes} are taken"
        raise Rejected(Reason.TOO_LARGE, detail)
    kind = _kind(data)
    if content_type is not None:
        declared = content_type.partition(";")[0].strip().lower()
        if declared != kind:
            detail = f"the image is {kind}, declared was {declared[:100]!r}"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
    try:
        width, height, frames = _READERS[kind](data)
    except (struct.error, IndexError) as error:
        raise _broken(kind, "its header is cut off") from error
    found = ImageFacts(content_type=kind, width=width, height=height, frames=frames)
    told = f"an {kind} of {width} x {height} pixels in {frames} frames"
    if found.pixels < 1:
        raise Rejected(Reason.OUT_OF_RANGE, f"{told}: at least one pixel is expected")
    if found.pixels > limits.max_pixels:
        raise Rejected(Reason.TOO_LARGE, f"{told}: at most {limits.max_pixels} pixels are taken")
    return found


def _kind(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return JPEG
    if data.startswith(_PNG_MAGIC):
        return PNG
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WEBP
    detail = f"no image: it begins with {data[:8].hex(' ')!r}, expected JPEG, PNG, WebP or GIF"
    raise Rejected(Reason.UNDECODABLE, detail)


def _broken(kind: str, what: str) -> Rejected:
    return Rejected(Reason.UNDECODABLE, f"an {kind} that cannot be read: {what}")


def _pieces(kind: str, data: bytes) -> Iterator[int]:
    """Numbers the pieces of a file, up to as many as it may have."""
    yield from range(_FEW_PIECES + len(data) // _PIECE_BYTES)
    raise _broken(kind, "it is in too many pieces")


# --- width, height and number of frames of each format; IndexError or struct.error: cut off


def _jpeg(data: bytes) -> tuple[int, int, int]:
    at = 2
    pieces = _pieces(JPEG, data)
    while True:
        next(pieces)
        if data[at] != 0xFF:
            raise _broken(JPEG, f"byte {at} is {data[at]:#04x}, expected a marker")
        marker = data[at + 1]
        if marker == 0xFF:  # any number of them may fill
            at += 1
            continue
        if marker in _LATER:
            raise _broken(JPEG, f"no frame comes before the marker {marker:#04x}")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise _broken(JPEG, f"a segment of {length} bytes, expected at least 2")
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height, 1
        at += 2 + length


def _png(data: bytes) -> tuple[int, int, int]:
    length, name, width, height = struct.unpack_from(">I4sII", data, len(_PNG_MAGIC))
    if (length, name) != (13, b"IHDR"):
        raise _broken(PNG, f"its first chunk is {name!r} of {length} bytes, expected IHDR of 13")
    if max(width, height) >= 1 << 31:
        raise _broken(PNG, f"{width} x {height}, expected less than 2**31 each")
    return width, height, 1


def _gif(data: bytes) -> tuple[int, int, int]:
    """The screen, or the largest frame if that is larger; decoders make a screen of each frame."""
    width, height, packed = struct.unpack_from("<HHB", data, 6)
    at, frames = 13 + _palette(packed), 0
    pieces = _pieces(GIF, data)
    while at < len(data) and data[at] != 0x3B:  # the trailer; many files lack it
        if data[at] == 0x21:  # an extension: its label, then its blocks
            at = _after_blocks(data, at + 2, pieces)
        elif data[at] == 0x2C:
            own_width, own_height, packed = struct.unpack_from("<HHB", data, at + 5)
            width, height = max(width, own_width), max(height, own_height)
            frames += 1
            at = _after_blocks(data, at + 11 + _palette(packed), pieces)
        else:
            raise _broken(GIF, f"byte {at} is {data[at]:#04x}, expected a block")
    return width, height, max(1, frames)


def _palette(packed: int) -> int:
    """Bytes of the table of colours that such flags announce."""
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _after_blocks(data: bytes, at: int, pieces: Iterator[int]) -> int:
    """Where the blocks that begin there end: each has its length in front, the last has none."""
    while length := data[at]:
        next(pieces)
        at += 1 + length
    next(pieces)
    return at + 1


def _webp(data: bytes) -> tuple[int, int, int]:
    width = height = frames = 0
    for name, at in _chunks(data):
        if name == b"VP8X":
            own = 1 + _int24(data, at + 4), 1 + _int24(data, at + 7)
        elif name == b"ANMF":
            own = 1 + _int24(data, at + 6), 1 + _int24(data, at + 9)
            frames += 1
        elif name == b"VP8L":
            own = _lossless(data, at)
        elif name == b"VP8 ":
            own = _lossy(data, at)
        else:
            continue
        width, height = max(width, own[0]), max(height, own[1])
    if not width:
        raise _broken(WEBP, "no chunk says its size, expected VP8, VP8L or VP8X")
    return width, height, max(1, frames)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Names of the file's chunks and where their content begins."""
    at = 12
    for _ in _pieces(WEBP, data):
        if at + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at + 8
        at += 8 + length + length % 2


def _int24(data: bytes, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low) | int(high) << 16


def _lossy(data: bytes, at: int) -> tuple[int, int]:
    start, width, height = struct.unpack_from("<3sHH", data, at + 3)
    if start != b"\x9d\x01\x2a":
        raise _broken(WEBP, f"its frame starts with {start.hex(' ')!r}, expected '9d 01 2a'")
    return width & 0x3FFF, height & 0x3FFF


def _lossless(data: bytes, at: int) -> tuple[int, int]:
    sign, bits = struct.unpack_from("<BI", data, at)
    if sign != 0x2F:
        raise _broken(WEBP, f"its bitstream starts with {sign:#04x}, expected 0x2f")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


_READERS: Final[dict[str, Callable[[bytes], tuple[int, int, int]]]] = {
    JPEG: _jpeg,
    PNG: _png,
    GIF: _gif,
    WEBP: _webp,
}
