"""Records that came in mixed are taken out by partition, whole and in order."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from ingest.batches import Columns, groups
from ingest.kafka.consumer import uncollected
from ingest.log import TopicPartition

CODES = [1, 0, 1, 1, 2]


def columns(headers: bool) -> Columns:
    n = len(CODES)
    return Columns(
        np.arange(10, 10 + n),
        np.arange(100, 100 + n),
        [b"k%d" % at for at in range(n)],
        [None if at == 3 else b"v%d" % at for at in range(n)],
        {2: (("h", b"x"),)} if headers else {},
    )


@pytest.mark.parametrize("headers", [False, True])
def test_each_partition_gets_its_records_in_order(headers: bool) -> None:
    found = {
        code: columns(headers).batch(TopicPartition("t", code), 10, index)
        for code, index in groups(CODES)
    }
    assert {code: batch.offsets.tolist() for code, batch in found.items()} == {
        0: [11],
        1: [10, 12, 13],
        2: [14],
    }
    assert found[1].keys == [b"k0", b"k2", b"k3"]
    assert found[1].values == [b"v0", b"v2", None]
    assert found[1].timestamps_ms.tolist() == [100, 102, 103]
    assert found[1].headers == ({1: (("h", b"x"),)} if headers else {})
    assert found[0].keys == [b"k1"]
    assert (found[1].start_offset, found[1].next_offset) == (10, 14)


def test_records_of_one_partition_are_handed_on_as_they_are() -> None:
    ((code, index),) = groups([7, 7])
    assert (code, index) == (7, None)
    assert columns(headers=True).batch(TopicPartition("t", 7), 10, None).offsets.tolist() == [
        *range(10, 15)
    ]


def test_garbage_is_searched_for_again_after_reading_even_after_an_error() -> None:
    def read() -> None:
        with uncollected():
            assert not gc.isenabled()
            raise ValueError("broken")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="broken"):
        read()
    assert gc.isenabled()


def test_a_process_that_searches_for_no_garbage_is_left_so() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
