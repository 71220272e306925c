"""HTTP/2 as bytes, so that a test can send what no client library would."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
SETTINGS_FRAME = bytes.fromhex("000000040000000000")
HEAD_BYTES = 9


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(*fields: tuple[bytes, bytes]) -> bytes:
    """A header block (HPACK): literals that are not indexed, not Huffman coded."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message of gRPC with its prefix: whether it is compressed, and its length."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


def call_fields(path: str) -> Sequence[tuple[bytes, bytes]]:
    """The headers of a call of gRPC."""
    return (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )


def called(port: int, path: str, body: bytes, more: Sequence[tuple[bytes, bytes]] = ()) -> str:
    """
    Call a method with this body.

    Returns:
        As `outcome`.
    """
    block = headers(*call_fields(path), *more)
    sent = [PREFACE, SETTINGS_FRAME, frame(HEADERS, END_HEADERS, 1, block)]
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)] or [b""]
    sent += [frame(DATA, 0, 1, piece) for piece in pieces[:-1]]
    sent.append(frame(DATA, END_STREAM, 1, pieces[-1]))
    with socket.create_connection(("127.0.0.1", port), 20) as raw:
        raw.sendall(b"".join(sent))
        return outcome(raw)


def outcome(raw: socket.socket) -> str:
    """
    How the next call of a connection ends: its gRPC status, or what the server did instead of
    telling one: "reset", "goaway" or "closed". "answered": with a message.
    """
    while True:
        head = _exactly(raw, HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            return "closed"
        size = int.from_bytes(head[:3], "big")
        kind, flags = head[3], head[4]
        payload = _exactly(raw, size)
        if kind == SETTINGS and not flags & ACK:
            raw.sendall(frame(SETTINGS, ACK, 0, b""))
        elif kind == HEADERS and (found := re.search(rb"grpc-status[\1\2](\d+)", payload)):
            return found[1].decode()
        elif kind in (DATA, RST_STREAM, GOAWAY):
            return {DATA: "answered", RST_STREAM: "reset", GOAWAY: "goaway"}[kind]


def _exactly(raw: socket.socket, size: int) -> bytes:
    got = b""
    try:
        while len(got) < size and (piece := raw.recv(size - len(got))):
            got += piece
    except ConnectionResetError:
        return b""
    return got


def _text(value: bytes) -> bytes:
    if len(value) > 126:
        raise ValueError(f"at most 126 bytes go into a short literal, got {len(value)}")
    return bytes([len(value)]) + value
