"""Records of the requests topic: which are requests, and what is wrong with the others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inference.requests import Asked, Bad, Limits, RequestReader, next_offset, problem
from ingest.log import RecordBatch
from schemas.codec import Codec
from schemas.errors import Reason
from schemas.events import Offset, RecommendationRequest
from schemas.registry import MemoryRegistry


def request(**given) -> RecommendationRequest:
    return RecommendationRequest(**{"request_id": "r", "user_id": "ann", **given})


def batch(keys, values, *, next_offset: int = 99) -> RecordBatch:
    n = len(values)
    return RecordBatch(
        topic="requests",
        partition=3,
        start_offset=5,
        next_offset=next_offset,
        offsets=np.arange(10, 10 + 2 * n, 2),
        timestamps_ms=np.arange(1000, 1000 + n),
        keys=keys,
        values=values,
        headers={},
    )


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def encode(registry):
    return Codec(registry, RecommendationRequest, "requests").encode


def test_a_request_comes_out_as_it_went_in(registry, encode):
    sent = request(
        k=7,
        event_time=5,
        candidates=("a", "b"),
        exclude=("c",),
        deadline_ms=50,
        after_offset=Offset(partition=1, offset=8),
        surface="home",
        device="tv",
        country="se",
    )
    (entry,) = RequestReader(registry).read(batch([b"ann"], [encode(sent)]))
    assert isinstance(entry, Asked)
    assert entry.request == sent
    assert (entry.timestamp_ms, entry.now_ms) == (1000, 5)


def test_the_records_time_is_now_where_none_is_given(registry, encode):
    (entry,) = RequestReader(registry).read(batch([b"ann"], [encode(request())]))
    assert entry.now_ms == 1000


def test_a_request_whose_writer_knows_no_k_asks_for_ten(registry):
    fields = [{"name": name, "type": "string"} for name in ("request_id", "user_id")]
    schema = {"type": "record", "name": "RecommendationRequest", "namespace": "millstream"}
    number = registry.register("foreign-value", json.dumps({**schema, "fields": fields}))
    value = b"\0" + number.to_bytes(4, "big") + b"\x02r\x06ann"
    (entry,) = RequestReader(registry).read(batch([b"ann"], [value]))
    assert isinstance(entry, Asked)
    assert entry.request == request(k=10)


def test_bad_records_are_told_apart_and_their_neighbours_stay(registry, encode):
    good = encode(request())
    keys = [b"ann", b"bob", None, b"ann", b"ann", b"ann"]
    values = [good, good, good, None, b"no frame", good]
    entries = RequestReader(registry).read(batch(keys, values))
    assert [e.index for e in entries] == list(range(6))
    reasons = [e.rejected.reason if isinstance(e, Bad) else None for e in entries]
    assert reasons == [
        None,
        Reason.KEY_MISMATCH,
        Reason.NULL_KEY,
        Reason.MISSING_FIELD,
        Reason.NOT_FRAMED,
        None,
    ]


def test_the_next_offset_leaves_no_hole_behind(registry, encode):
    entries = RequestReader(registry).read(batch([b"ann"] * 3, [encode(request())] * 3))
    assert [next_offset(e) for e in entries] == [12, 14, 99]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "k must be between 1 and 500, got 0"),
        ({"k": -3}, "k must be between 1 and 500, got -3"),
        ({"k": 501}, "k must be between 1 and 500, got 501"),
        ({"candidates": ("a",) * 5001}, "at most 5000 candidates can be ranked, got 5001"),
        ({"candidates": ("a", "")}, "a candidate's item id is empty"),
        ({"exclude": ("a",) * 5001}, "at most 5000 items can be excluded, got 5001"),
        ({"request_id": ""}, "request_id is missing"),
        ({"user_id": ""}, "user_id is missing"),
        ({"deadline_ms": 0}, "deadline_ms must be at least 1, got 0"),
        ({"k": 0, "user_id": ""}, "user_id is missing; k must be between 1 and 500, got 0"),
    ],
)
def test_what_is_wrong_is_said(given, message):
    assert problem(request(**given), Limits()) == message


def test_the_limits_themselves_are_allowed():
    assert problem(request(k=500, candidates=("a",) * 5000), Limits()) == ""
