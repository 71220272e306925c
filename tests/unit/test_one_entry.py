"""A feature is declared once: one more entry, and everything that a feature needs is there."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from features import assemble
from features.assemble import ItemFeatures, UserFeatures
from features.catalog import CATALOG, describe
from features.declare import (
    Array,
    Drift,
    Feature,
    FeatureSet,
    ItemContext,
    Level,
    UserContext,
    declared,
    missing,
)
from features.example_bytes import encode, framed
from features.examples import LABELS, Examples
from features.items import ItemTable
from features.rows import empty
from retrain.drift.streams import streams_of
from retrain.roles import roles_of
from schemas.events import Item
from tests.tfexample import read_examples

NOW = 1_750_000_000_000


def of_users(context: UserContext) -> Array:
    return context.now_ms % 1_000 + 7


def of_items(context: ItemContext) -> Array:
    return np.stack([context.index + 7, context.index + 8], axis=1)


NEW = [
    Feature(
        name=f"new_{level}_{dtype}",
        level=level,
        dtype=dtype,
        compute=of_users if level is Level.USER else of_items,
        length=1 if level is Level.USER else 2,
        default=3,
        drift=Drift.NUMERIC if dtype == "float32" else Drift.HASHED,
        defaultable=True,
        doc="a number that is easily recognised",
    )
    for level in Level
    for dtype in ("int64", "float32")
]
VALUES = {Level.USER: [7], Level.ITEM: [7, 8]}


@pytest.fixture(params=NEW, ids=lambda f: f.name)
def new(request: pytest.FixtureRequest) -> Feature:
    found: Feature = request.param
    return found


@pytest.fixture
def grown(new: Feature) -> FeatureSet:
    """The catalog and one entry."""
    return FeatureSet((*CATALOG.features, new), row=CATALOG.row)


def assembled(features: FeatureSet) -> tuple[UserFeatures, ItemFeatures]:
    """The features of one user without a row and one item."""
    table = ItemTable(features.fingerprint)
    table.put_items([Item(item_id="a", title="A")])
    none = np.zeros(1, np.uint64)
    users = UserContext(
        rows=empty(1), now_ms=np.array([NOW]), surface=none, device=none, country=none
    )
    zero = np.zeros(1, np.int64)
    items = ItemContext(users=users, request=zero, hashes=table.hashes, items=table, index=zero)
    return assemble.assemble_users(features, users), assemble.assemble_items(features, items)


def test_it_is_assembled(new: Feature, grown: FeatureSet) -> None:
    users, items = assembled(grown)
    part = users if new.level is Level.USER else items
    found = assemble.named(grown, new.level, part.longs, part.floats)[new.name]
    assert found.reshape(-1).tolist() == VALUES[new.level]


def example(features: FeatureSet) -> Examples:
    users, items = assembled(features)
    zero = np.zeros(1, np.int64)
    return Examples(
        **dict.fromkeys(("request_id", "user_id", "item_id", "source", "surface"), ("x",)),
        **dict.fromkeys(("position", "event_time", "model_version"), zero),
        **dict.fromkeys(("events_partition", "events_offset"), zero),
        item_hash=np.ones(1, np.uint64),
        fingerprint=features.fingerprint,
        users=users,
        items=items,
        labels=np.zeros((1, LABELS), np.int64),
    )


def written(features: FeatureSet, folder: Path) -> Path:
    path = folder / "part.tfrecord.gz"
    path.write_bytes(gzip.compress(framed(encode(example(features), features))))
    return path


def test_it_is_in_the_bytes_of_examples(new: Feature, grown: FeatureSet, tmp_path: Path) -> None:
    [found] = read_examples(written(grown, tmp_path))
    assert found[new.name] == VALUES[new.level]


@pytest.mark.tf
def test_it_is_parsed_and_a_model_is_asked_to_take_it(new: Feature, grown: FeatureSet) -> None:
    from features.tfrecord import parse_spec, parsed
    from inference.expected import expected_inputs, signature_problems
    from inference.samples import RANK, RETRIEVE

    assert parse_spec(grown)[new.name].dtype == new.dtype
    read = parsed(encode(example(grown), grown), grown)
    assert read[new.name].reshape(-1).tolist() == VALUES[new.level]
    inputs = expected_inputs(grown)
    shape = (None,) if new.length == 1 else (None, new.length)
    for signature in (RANK, RETRIEVE) if new.level is Level.USER else (RANK,):
        spec = inputs[signature][new.name]
        assert (spec.dtype, spec.shape) == (new.dtype, shape)
    problems = signature_problems(expected_inputs(CATALOG), grown)
    assert f"rank: input {new.name!r} is missing" in problems


def test_the_network_gives_it_a_part(new: Feature, grown: FeatureSet) -> None:
    """But for numbers of items: the item tower reads content only."""
    roles = roles_of(grown)
    parts: dict[tuple[Level, str], Sequence[str]] = {
        (Level.USER, "int64"): roles.hashed,
        (Level.USER, "float32"): roles.numbers,
        (Level.ITEM, "int64"): roles.content,
    }
    named = parts.get((new.level, new.dtype))
    assert named is None or new.name in named


def test_it_is_watched_for_drift(new: Feature, grown: FeatureSet) -> None:
    assert [s.kind for s in streams_of(grown) if s.name == new.name] == [new.drift]


def test_it_is_described(new: Feature, grown: FeatureSet) -> None:
    assert describe(grown)[-1] == {
        "name": new.name,
        "level": str(new.level),
        "type": new.dtype if new.length == 1 else f"{new.dtype}[2]",
        "default": "3",
        "missing": "default",
        "drift": str(new.drift),
        "meaning": new.doc,
    }


def test_it_makes_another_set_that_may_read_what_the_old_one_wrote(
    new: Feature, grown: FeatureSet
) -> None:
    assert grown.fingerprint != CATALOG.fingerprint
    assert missing(grown, declared(CATALOG)) == (new.name,)
