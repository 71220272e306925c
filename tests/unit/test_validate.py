import math

import numpy as np
import polars as pl
import pytest

from features.validate import LAST_MS, MAX_ID_BYTES, Candidates, rejections
from schemas.errors import Reason

NOW = 1_700_000_000_000
GOOD = {
    "event_id": "e1",
    "user_id": "ann",
    "item_id": "film",
    "event_time": NOW,
    "value": 4.5,
}
SCHEMA = {
    "event_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "event_time": pl.Int64,
    "value": pl.Float64,
}


def candidates(*rows: dict[str, object], keys: list[str | None] | None = None) -> Candidates:
    events = [GOOD | row for row in rows]
    return Candidates(
        frame=pl.DataFrame(events, schema=SCHEMA),
        users=pl.Series([e["user_id"] for e in events] if keys is None else keys, dtype=pl.String),
        timestamps_ms=np.full(len(events), NOW, np.int64),
        future_ms=300_000,
    )


def test_good_events_pass_with_and_without_their_optional_fields() -> None:
    assert rejections(candidates({}, {"item_id": None}, {"value": None})) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": ""}, Reason.MISSING_FIELD),
        ({"event_id": ""}, Reason.MISSING_FIELD),
        ({"item_id": ""}, Reason.MISSING_FIELD),
        ({"event_time": 0}, Reason.OUT_OF_RANGE),
        ({"event_time": -5}, Reason.OUT_OF_RANGE),
        ({"event_time": LAST_MS + 1}, Reason.OUT_OF_RANGE),
        ({"event_time": NOW + 300_001}, Reason.IN_FUTURE),
        ({"value": math.nan}, Reason.OUT_OF_RANGE),
        ({"value": math.inf}, Reason.OUT_OF_RANGE),
        ({"user_id": "u" * (MAX_ID_BYTES + 1)}, Reason.TOO_LARGE),
        ({"item_id": "\u00e9" * (MAX_ID_BYTES // 2 + 1)}, Reason.TOO_LARGE),
        ({"event_id": "e" * (MAX_ID_BYTES + 1)}, Reason.TOO_LARGE),
    ],
)
def test_a_bad_event_is_refused_and_its_neighbours_are_not(
    change: dict[str, object], reason: Reason
) -> None:
    found = rejections(candidates({}, change, {}))
    assert [(row, why.reason) for row, why in found] == [(1, reason)]


def test_an_event_just_within_the_allowed_future_passes() -> None:
    assert rejections(candidates({"event_time": NOW + 300_000})) == ()


def test_a_key_unlike_the_user_id_is_refused_and_both_are_shown() -> None:
    found = rejections(candidates({}, {}, {}, keys=["ann", "bob", None]))
    assert [(row, why.reason) for row, why in found] == [
        (1, Reason.KEY_MISMATCH),
        (2, Reason.KEY_MISMATCH),
    ]
    assert "'ann'" in found[0][1].detail
    assert "'bob'" in found[0][1].detail
