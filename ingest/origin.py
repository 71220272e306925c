"""
Where a record was first: a header that a record keeps when it is produced again.

The feature worker sends a misplaced event on with it, and a copy of a topic gives it to every
record. The hash of a first place stands in the event-id ring for a record without an event id.
"""

from __future__ import annotations

from typing import Final

from ingest.log import Headers, RecordBatch

ORIGIN_HEADER: Final = "millstream-origin"  # value: topic/partition/offset of the original


def origin_of(batch: RecordBatch, index: int) -> bytes:
    """The first place of a record: the same for an original and for its copies."""
    known = first_place(batch.headers.get(index, ()))
    return known or f"{batch.topic}/{batch.partition}/{batch.offsets[index]}".encode()


def first_place(headers: Headers) -> bytes | None:
    """
    What the header of a copy says; None: this is an original.

    >>> first_place(((ORIGIN_HEADER, b"user-events/0/7"),))
    b'user-events/0/7'
    """
    return next((value for name, value in headers if name == ORIGIN_HEADER), None)


def of_another_topic(batch: RecordBatch, index: int) -> bool:
    """Whether a record was copied from another topic: offsets in it count in that one's log."""
    place = first_place(batch.headers.get(index, ()))
    return place is not None and place.split(b"/", maxsplit=1)[0] != batch.topic.encode()
