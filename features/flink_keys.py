"""
Which of a Flink operator's subtasks gets which read.

Flink deals keys out by their hash, and Beam's key of a read is its encoded source: left to
themselves, four reads may well meet in one of two subtasks. A source that carries a number which
means nothing else can be made to fall where it is wanted. Should a later Flink or Beam count
otherwise, reads are dealt out by chance again, and rows stay right.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

_MASK = 0xFFFFFFFF


def subtask(key: bytes, parallelism: int) -> int:
    """
    The subtask that Flink gives a key to, when there are as many key groups as subtasks.

    >>> [subtask(key, 4) for key in (b"", b"a", b"features")]
    [2, 1, 2]
    """
    return _murmur(_java_hash(key)) % parallelism


def salt_for(wanted: int, parallelism: int, key: Callable[[int], bytes]) -> int:
    """The first number whose `key` falls into the wanted subtask."""
    return next(salt for salt in count() if subtask(key(salt), parallelism) == wanted)


def _java_hash(data: bytes) -> int:
    """`ByteBuffer.hashCode()`: over signed bytes, from the last to the first."""
    code = 1
    for byte in reversed(data):
        code = (31 * code + (byte - 256 if byte > 127 else byte)) & _MASK
    return code


def _murmur(code: int) -> int:
    """Flink's `MathUtils.murmurHash` of an int."""
    code = _rotated(code * 0xCC9E2D51 & _MASK, 15)
    code = _rotated(code * 0x1B873593 & _MASK, 13)
    code = (code * 5 + 0xE6546B64) & _MASK
    code ^= 4
    code = (code ^ code >> 16) * 0x85EBCA6B & _MASK
    code = (code ^ code >> 13) * 0xC2B2AE35 & _MASK
    code ^= code >> 16
    return abs(code - (1 << 32) if code >> 31 else code) & 0x7FFFFFFF


def _rotated(code: int, bits: int) -> int:
    return (code << bits | code >> (32 - bits)) & _MASK
