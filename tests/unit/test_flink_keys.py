"""Reads fall where Flink puts them."""

from __future__ import annotations

import pytest

from features.flink_keys import salt_for, subtask


@pytest.mark.parametrize(
    ("key", "groups"),
    [
        (b"", (0, 0, 2, 2, 86)),
        (b"a", (0, 1, 1, 4, 41)),
        (b"features", (0, 0, 2, 1, 22)),
        (b"\xff\x80x", (0, 0, 2, 3, 58)),
        (b"0123456789" * 30, (0, 1, 3, 2, 3)),
    ],
)
def test_keys_are_dealt_out_as_flink_deals_them(key: bytes, groups: tuple[int, ...]) -> None:
    # Printed by Flink 1.19's KeyGroupRangeAssignment.computeKeyGroupForKeyHash of a ByteBuffer.
    assert tuple(subtask(key, of) for of in (1, 2, 4, 7, 128)) == groups


@pytest.mark.parametrize("parallelism", [1, 2, 3, 5])
def test_a_salt_is_found_for_every_subtask(parallelism: int) -> None:
    def key(salt: int) -> bytes:
        return b"read-%d" % salt

    for wanted in range(parallelism):
        assert subtask(key(salt_for(wanted, parallelism, key)), parallelism) == wanted
