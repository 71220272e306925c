"""What a feature set says of itself, and which stored values another set may read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from features.catalog import CATALOG
from features.declare import Feature, FeatureSet, Level, RowPolicy, declared, missing
from schemas.errors import Refused


def feature(name: str) -> Feature:
    return Feature(
        name=name,
        level=Level.USER,
        dtype="float32",
        compute=lambda context: np.zeros(len(context.now_ms)),
        doc="nothing",
    )


A, B, NEW = feature("a"), feature("b"), replace(feature("new"), default=1.5, defaultable=True)
OLD = FeatureSet((A, B))


def test_nothing_is_missing_under_the_sets_own_declaration() -> None:
    assert missing(CATALOG, declared(CATALOG)) == ()


def test_a_declaration_is_the_same_text_whatever_may_be_read() -> None:
    """`defaultable` is the reader's leave; what is stored means the same with it and without."""
    strict = FeatureSet((replace(NEW, defaultable=False),))
    assert declared(strict) == declared(FeatureSet((NEW,)))
    assert strict.fingerprint == FeatureSet((NEW,)).fingerprint


@pytest.mark.parametrize("features", [(NEW, A, B), (A, NEW, B), (A, B, NEW)])
def test_a_defaultable_feature_may_be_missing(features: tuple[Feature, ...]) -> None:
    assert missing(FeatureSet(features), declared(OLD)) == ("new",)


def test_a_row_may_keep_more_attributes_than_it_did() -> None:
    old = FeatureSet((A,), row=RowPolicy(attributes=("x",)))
    new = FeatureSet((A, NEW), row=RowPolicy(attributes=("w", "x")))
    assert missing(new, declared(old)) == ("new",)
    with pytest.raises(Refused, match=r"row: attributes is \['w', 'x'\], here \['x'\]"):
        missing(old, declared(new))


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        ((A, B, replace(NEW, defaultable=False)), "new is missing and not defaultable"),
        ((A, NEW), "b is no longer declared"),
        ((B, A, NEW), "the features stand in another order"),
        ((A, replace(B, revision=2), NEW), "b: revision is 1, here 2"),
        ((A, replace(B, length=3), NEW), "b: length is 1, here 3"),
        ((A, replace(B, dtype="int64"), NEW), "b: dtype is 'float32', here 'int64'"),
        ((A, replace(B, default=2), NEW), "b: default is 0, here 2"),
    ],
)
def test_any_other_difference_is_refused_and_named(
    features: tuple[Feature, ...], problem: str
) -> None:
    with pytest.raises(Refused, match=problem):
        missing(FeatureSet(features), declared(OLD))


def test_another_row_policy_is_refused() -> None:
    with pytest.raises(Refused, match="row: ring_length is 256, here 9"):
        missing(FeatureSet((A, B), row=RowPolicy(ring_length=9)), declared(OLD))


def test_all_differences_are_told_together() -> None:
    with pytest.raises(Refused) as refused:
        missing(FeatureSet((feature("c"), replace(B, revision=2))), declared(OLD))
    for problem in ("c is missing", "a is no longer declared", "b: revision"):
        assert problem in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"features": [1], "row": {}}',
        '{"features": [], "row": 1}',
        json.dumps({"features": [{"name": "a"}] * 2, "row": {}}),
    ],
)
def test_what_is_no_declaration_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="no feature set's declaration"):
        missing(OLD, text)
