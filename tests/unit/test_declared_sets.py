"""Feature sets from their declarations, and what of one set another set's model can take."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.assemble import ItemFeatures, Narrowing, UserFeatures, named
from features.catalog import CATALOG, RETIRED, feature_set
from features.declare import FeatureSet, Level, declared, declared_set
from schemas.errors import Refused
from tests.feature_sets import OLD, without

NAMES = [f.name for f in CATALOG.features]


def test_the_catalog_knows_itself() -> None:
    assert feature_set(declared(CATALOG)).fingerprint == CATALOG.fingerprint
    assert feature_set(declared(OLD)).fingerprint == OLD.fingerprint
    assert feature_set(declared(OLD)).row == OLD.row
    known = [(f.name, f.revision) for f in (*CATALOG.features, *RETIRED)]
    assert len(set(known)) == len(known)  # one computation a revision


@given(st.lists(st.sampled_from(NAMES), unique=True, max_size=20))
def test_any_set_of_known_features_comes_back_from_its_declaration(names: list[str]) -> None:
    wanted = without(*names)
    found = feature_set(declared(wanted))
    assert (found.fingerprint, found.features) == (wanted.fingerprint, wanted.features)


def test_a_retired_feature_is_computed_for_those_who_still_take_it() -> None:
    gone = CATALOG.features[3]
    text = declared(CATALOG)
    rest = tuple(f for f in CATALOG.features if f is not gone)
    with pytest.raises(Refused, match=rf"{gone.name} \(revision {gone.revision}\) is not known"):
        declared_set(text, rest)
    assert declared_set(text, (*rest, gone)).fingerprint == CATALOG.fingerprint
    # Its successor may stand beside it.
    newer = replace(gone, revision=gone.revision + 1)
    assert declared_set(text, (newer, *rest, gone)).fingerprint == CATALOG.fingerprint


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["features"][0].update(length=7), "history_items: length is 7, here 50"),
        (lambda d: d["features"][0].update(name="nobody"), r"nobody \(revision 1\) is not known"),
        (lambda d: d["row"].update(colour="red"), "row: colour is not known here"),
        (lambda d: d["row"].pop("ring_length"), "row: ring_length is None, here 256"),
        (lambda d: d["row"].update(history_types=[99]), "99"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_every_difference(change, text) -> None:
    found = json.loads(declared(CATALOG))
    change(found)
    with pytest.raises(Refused, match=text):
        feature_set(json.dumps(found))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"features": 3}'])
def test_what_is_no_declaration_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="no feature set's declaration"):
        feature_set(text)


def test_a_model_of_an_older_set_takes_its_own_columns() -> None:
    rng = np.random.default_rng(1)
    n = 5
    users = UserFeatures(
        longs=rng.integers(0, 99, (n, CATALOG.width(Level.USER, "int64"))),
        floats=rng.random((n, CATALOG.width(Level.USER, "float32")), np.float32),
    )
    items = ItemFeatures(
        longs=rng.integers(0, 99, (n, CATALOG.width(Level.ITEM, "int64"))),
        floats=rng.random((n, CATALOG.width(Level.ITEM, "float32")), np.float32),
    )
    narrowing = Narrowing(CATALOG, OLD)
    for level, whole, part in (
        (Level.USER, users, narrowing.users(users)),
        (Level.ITEM, items, narrowing.items(items)),
    ):
        expected = named(CATALOG, level, whole.longs, whole.floats)
        found = named(OLD, level, part.longs, part.floats)
        assert found.keys() == {f.name for f in OLD.of(level)}
        for name, values in found.items():
            assert np.array_equal(values, expected[name])


def test_a_set_does_not_hold_the_features_of_its_successor() -> None:
    with pytest.raises(Refused, match="user_tenure"):
        Narrowing(OLD, CATALOG)


def test_an_empty_set_has_a_declaration_too() -> None:
    nothing = FeatureSet((), row=CATALOG.row)
    assert feature_set(declared(nothing)).fingerprint == nothing.fingerprint
