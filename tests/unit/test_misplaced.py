import numpy as np

from features.misplaced import arrivals, grouped, misplaced, sent_on
from ingest.log import Headers, RecordBatch
from ingest.origin import ORIGIN_HEADER, origin_of
from ingest.placement import partition_of

PARTITIONS = 4


def batch(
    keys: list[bytes | None], headers: dict[int, Headers] | None = None, partition: int = 0
) -> RecordBatch:
    n = len(keys)
    return RecordBatch(
        topic="events",
        partition=partition,
        start_offset=100,
        next_offset=100 + n,
        offsets=np.arange(100, 100 + n),
        timestamps_ms=np.full(n, 5),
        keys=keys,
        values=[b"value"] * n,
        headers=headers or {},
    )


def key_of(partition: int) -> bytes:
    return next(
        key
        for key in (f"user-{i}".encode() for i in range(100))
        if partition_of(key, PARTITIONS) == partition
    )


def origin(text: bytes) -> Headers:
    return ((ORIGIN_HEADER, text),)


def test_only_records_of_another_partition_are_misplaced() -> None:
    found = batch([key_of(0), key_of(1), None, key_of(0), key_of(3)])
    assert misplaced(found, grouped(found.keys), PARTITIONS).tolist() == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_a_record_with_an_origin_is_never_sent_on_again() -> None:
    found = batch([key_of(1)], {0: origin(b"events/2/7")})
    assert not misplaced(found, grouped(found.keys), PARTITIONS).any()


def test_a_copy_keeps_everything_and_names_its_first_place() -> None:
    found = batch([key_of(1)], {0: (("trace", b"t"),)})
    copy = sent_on(found, 0)
    assert (copy.topic, copy.key, copy.value, copy.timestamp_ms) == (
        "events",
        key_of(1),
        b"value",
        5,
    )
    assert copy.partition is None
    assert copy.headers == (("trace", b"t"), (ORIGIN_HEADER, b"events/0/100"))
    again = batch([key_of(1)], {0: copy.headers}, partition=1)
    assert origin_of(again, 0) == origin_of(found, 0)


def test_copies_that_come_a_second_time_are_repeats() -> None:
    headers = {at: origin(f"events/2/{at + 10}".encode()) for at in range(3)}
    first = arrivals(batch([key_of(0)] * 3, headers), ())
    assert (first.repeated.tolist(), first.origins) == ([], ((2, 13),))
    headers |= {3: origin(b"events/2/13"), 4: origin(b"events/3/0")}
    again = arrivals(batch([key_of(0)] * 5, headers), first.origins)
    assert again.repeated.tolist() == [0, 1, 2]
    assert again.origins == ((2, 14), (3, 1))


def test_origins_that_we_did_not_write_are_not_judged() -> None:
    headers = {
        0: origin(b"other/2/1"),
        1: origin(b"events/2"),
        2: origin(b"events/x/1"),
        3: origin(b""),
    }
    found = arrivals(batch([key_of(0)] * 4, headers), ((2, 50),))
    assert (found.repeated.tolist(), found.origins) == ([], ((2, 50),))
