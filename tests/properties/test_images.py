"""Images by their headers: what is found is what was written, and nothing else ever escapes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.errors import Reason, Rejected
from schemas.images import GIF, JPEG, PNG, WEBP, ImageFacts, ImageLimits, check_image

LIMITS = ImageLimits()
ENDLESS = ImageLimits(max_pixels=1 << 80)


def jpeg(width: int, height: int, *, marker: int = 0xC0, before: bytes = b"") -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0"
    return b"\xff\xd8" + before + _segment(0xE0, b"JFIF\0") + _segment(marker, frame) + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content


def png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    end = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + end


def gif(width: int, height: int, frames: int = 1, palette: int = 0) -> bytes:
    flags = 0x80 | palette
    table = bytes(3 << (palette + 1))
    screen = struct.pack("<HHBBB", width, height, flags, 0, 0) + table
    pause = b"\x21\xf9\x04\0\x0a\0\0\0"
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, flags) + table
    picture += b"\x02\x03abc\x01d\0"
    return b"GIF89a" + screen + (pause + picture) * frames + b";"


def webp(kind: str, width: int, height: int, frames: int = 0) -> bytes:
    if kind == "VP8 ":
        content = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    elif kind == "VP8L":
        content = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14)
    else:
        content = b"\x02\0\0\0" + _int24(width - 1) + _int24(height - 1)
    picture = bytes(6) + _int24(width - 1) + _int24(height - 1) + bytes(4)
    chunks = _chunk(kind.encode(), content) + _chunk(b"ANMF", picture) * frames
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _int24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


SIZES = st.integers(1, 2**14 - 1)
FRAMES = st.integers(1, 5)


@st.composite
def images(draw) -> tuple[bytes, ImageFacts]:
    """An image of any format, and what it is."""
    width, height = draw(SIZES), draw(SIZES)
    facts = ImageFacts(content_type=PNG, width=width, height=height)
    kind = draw(st.sampled_from((JPEG, PNG, GIF, "VP8 ", "VP8L", "VP8X")))
    if kind == JPEG:
        marker = draw(st.sampled_from((0xC0, 0xC1, 0xC2, 0xC9, 0xCF)))
        before = draw(st.sampled_from((b"", b"\xff" * 3 + _segment(0xE1, b"x" * 300)[1:])))
        return jpeg(width, height, marker=marker, before=before), replace(facts, content_type=JPEG)
    if kind == PNG:
        return png(width, height), facts
    frames = draw(FRAMES)
    if kind == GIF:
        data = gif(width, height, frames, draw(st.integers(0, 7)))
        return data, replace(facts, content_type=GIF, frames=frames)
    animated = kind == "VP8X"
    data = webp(kind, width, height, frames if animated else 0)
    return data, replace(facts, content_type=WEBP, frames=frames if animated else 1)


@given(images())
def test_what_an_image_says_is_found(image):
    data, facts = image
    assert check_image(data, None, ENDLESS) == facts
    assert check_image(data, facts.content_type.upper() + "; a=b", ENDLESS) == facts


@given(images(), st.sampled_from((JPEG, PNG, GIF, WEBP, "image/bmp", "text/html", "")))
def test_another_type_than_declared_is_refused_with_both(image, declared):
    data, facts = image
    if declared == facts.content_type:
        return
    with pytest.raises(Rejected) as refused:
        check_image(data, declared, ENDLESS)
    assert facts.content_type in refused.value.detail
    assert repr(declared) in refused.value.detail


@given(images())
def test_one_pixel_too_many_is_refused_and_the_limit_itself_is_not(image):
    data, facts = image
    assert check_image(data, None, replace(LIMITS, max_pixels=facts.pixels)) == facts
    if facts.pixels > 1:
        with pytest.raises(Rejected, match=f"at most {facts.pixels - 1} pixels") as refused:
            check_image(data, None, replace(LIMITS, max_pixels=facts.pixels - 1))
        assert refused.value.reason is Reason.TOO_LARGE


@given(images())
def test_one_byte_too_many_is_refused(image):
    data, _ = image
    with pytest.raises(Rejected, match=f"{len(data)} bytes, at most {len(data) - 1}"):
        check_image(data, None, replace(ENDLESS, max_bytes=len(data) - 1))


@given(images(), st.data())
def test_of_a_damaged_image_all_is_said_by_rejected(image, data):
    whole, _ = image
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 5))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = check_image(bytes(damaged), None, LIMITS)
    except Rejected:
        return
    assert 1 <= found.pixels <= LIMITS.max_pixels


@given(
    st.sampled_from(
        (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"RIFF")
    ),
    st.binary(max_size=200),
)
@example(b"\xff\xd8\xff", b"\xff" * 100)
@example(b"GIF89a", b"\0\0\0\0\0\0\0" + b"\x21" * 100)
@example(b"RIFF\0\0\0\0WEBP", b"VP8X\xff\xff\xff\xff")
def test_nothing_but_rejected_ever_escapes(start, rest):
    try:
        found = check_image(start + rest, None, LIMITS)
    except Rejected:
        return
    assert found.pixels >= 1


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "expected JPEG, PNG, WebP or GIF"),
        (b"BM" + bytes(60), "begins with '42 4d"),
        (png(0, 5), "at least one pixel"),
        (png(2**31, 1), "less than 2\\*\\*31"),
        (png(60_000, 60_000), "60000 x 60000 pixels in 1 frames: at most 16000000"),
        (jpeg(65_535, 65_535), "at most 16000000"),
        (jpeg(10, 0), "at least one pixel"),
        (b"\xff\xd8\xff\xda\0\x08", "no frame comes before the marker 0xda"),
        (b"\xff\xd8" + b"\xff" * 1_000_000, "too many pieces"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 250_000, "too many pieces"),
        (b"GIF89a" + bytes(7) + b"\x21\xfe" + b"\1a" * 500_000, "too many pieces"),
        (b"GIF89a" + bytes(7) + b"\x21\xfe\0" * 500_000, "too many pieces"),
        (b"RIFF\0\0\0\0WEBP" + b"JUNK\0\0\0\0" * 100_000, "too many pieces"),
        (b"\xff\xd8\xff\xe0\0\1", "a segment of 1 bytes"),
        (gif(1000, 1000, frames=17), "in 17 frames: at most"),
        (webp("VP8X", 2000, 2000, frames=9), "in 9 frames: at most"),
        (b"RIFF\0\0\0\0WEBPJUNK\0\0\0\0", "no chunk says its size"),
    ],
)
def test_what_is_wrong_is_said(data, told):
    with pytest.raises(Rejected, match=told):
        check_image(data, None, LIMITS)


def test_a_small_canvas_does_not_hide_a_large_frame():
    large = webp("VP8X", 16_000, 16_000)[12:]
    small = webp("VP8X", 1, 1)
    with pytest.raises(Rejected, match="16000 x 16000"):
        check_image(small + large, None, LIMITS)


@pytest.mark.parametrize("given", [{"max_bytes": 0}, {"max_pixels": -1}])
def test_limits_have_a_least(given):
    with pytest.raises(ValueError, match="at least 1"):
        ImageLimits(**given)
