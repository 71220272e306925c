"""Features of a kind are computed by one call, and are what each is by itself."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from features import assemble
from features.catalog import CATALOG
from features.declare import (
    DAY_MS,
    Array,
    Feature,
    FeatureSet,
    ItemContext,
    Level,
    Together,
    UserContext,
)
from features.fold import EventColumns, fold
from features.hashing import hash_id, hash_ids
from features.items import ItemTable
from features.partials import empty_partials, encode_partials, fold_partials
from features.rows import Rows, empty
from features.user_features import ATTRIBUTES
from schemas.events import EventType, Item, ItemFeatures

NOW = 20_000 * DAY_MS + 5_000_000
USERS, EVENTS = 7, 400
NAMES = [f"item-{n}" for n in range(12)]


def events(rows: int) -> EventColumns:
    """Of all types, most of them of the last month, by the users and on the items in turn."""
    chance = np.random.default_rng(11)
    times = np.sort(NOW - chance.exponential(5 * DAY_MS, EVENTS).astype(np.int64))
    kinds = chance.integers(1, 11, EVENTS).astype(np.uint8)
    profiles = np.flatnonzero(kinds == EventType.PROFILE)
    return EventColumns(
        row=np.arange(EVENTS) % rows,
        event_id=np.arange(1, EVENTS + 1, dtype=np.uint64),
        item=hash_ids(NAMES)[chance.integers(0, len(NAMES), EVENTS)],
        event_type=kinds,
        event_time_ms=times,
        value=chance.normal(size=EVENTS).astype(np.float32),
        erase=np.zeros(EVENTS, np.bool_),
        profile_event=profiles,
        profile_name=np.resize(hash_ids(ATTRIBUTES), len(profiles)),
        profile_value=np.arange(1, len(profiles) + 1, dtype=np.uint64),
    )


@cache
def rows_of_users() -> Rows:
    return fold(empty(USERS), events(USERS), CATALOG.row).rows


@cache
def item_table() -> ItemTable:
    table = ItemTable(CATALOG.fingerprint)
    table.put_items([Item(item_id=n, title=n, categories=(n[-1], "all")) for n in NAMES])
    found = events(len(NAMES))
    partials = fold_partials(
        empty_partials(len(NAMES)), found.row, found.event_type, found.event_time_ms, CATALOG.row
    )
    encoded = encode_partials(partials, CATALOG.fingerprint)
    table.put_partials(
        [
            ItemFeatures(
                item_id=name,
                partition=0,
                events_offset=0,
                fingerprint=CATALOG.fingerprint,
                partial=one,
            )
            for name, one in zip(NAMES, encoded, strict=True)
        ]
    )
    return table


def user_context() -> UserContext:
    said = (hash_ids([f"{name} {n}" for n in range(USERS)]) for name in ("in", "on", "from"))
    surface, device, country = said
    now_ms = NOW + np.arange(USERS) * 3_600_000
    return UserContext(
        rows=rows_of_users(), now_ms=now_ms, surface=surface, device=device, country=country
    )


def item_context() -> ItemContext:
    """Every item and an unknown one for every user."""
    table = item_table()
    hashes = np.tile(hash_ids([*NAMES, "unknown"]), USERS)
    return ItemContext(
        users=user_context(),
        request=np.repeat(np.arange(USERS), len(NAMES) + 1),
        hashes=hashes,
        items=table,
        index=table.index(hashes),
    )


def alone(level: Level, name: str) -> Array:
    """What one feature is in a set of its own."""
    (feature,) = (f for f in CATALOG.features if f.name == name)
    features = FeatureSet((feature,), row=CATALOG.row)
    return packed(features, level, feature.dtype)


def packed(features: FeatureSet, level: Level, dtype: str) -> Array:
    if level is Level.USER:
        users = assemble.assemble_users(features, user_context())
        return users.longs if dtype == "int64" else users.floats
    items = assemble.assemble_items(features, item_context())
    return items.longs if dtype == "int64" else items.floats


@pytest.mark.parametrize("dtype", ["int64", "float32"])
@pytest.mark.parametrize("level", list(Level))
def test_each_is_what_it_is_by_itself(level: Level, dtype: str) -> None:
    whole = packed(CATALOG, level, dtype)
    for name, part in CATALOG.slices(level, dtype).items():
        assert np.array_equal(whole[:, part], alone(level, name)), name
    assert (whole != whole[0]).any(axis=0).mean() >= 0.3  # columns that say something


def test_neighbours_of_a_kind_take_one_call() -> None:
    calls = []

    def table(context: UserContext, keys: tuple[int, ...]) -> Array:
        calls.append(keys)
        return context.now_ms[:, None] + keys

    def of(name: str, key: int) -> Feature:
        return Feature(
            name=name, level=Level.USER, dtype="int64", compute=Together(table, key), doc="later"
        )

    other = Feature(
        name="other", level=Level.USER, dtype="int64", compute=lambda c: c.now_ms, doc="now"
    )
    features = FeatureSet((of("one", 1), of("two", 2), other, of("three", 3)))
    found = assemble.assemble_users(features, user_context()).longs - NOW
    assert calls == [(1, 2), (3,)]
    assert found[0].tolist() == [1, 2, 0, 3]


def test_what_a_kind_gives_must_be_as_wide_as_its_features() -> None:
    def table(context: UserContext, keys: tuple[int, ...]) -> Array:
        return np.zeros((len(context.now_ms), 5))

    features = FeatureSet(
        tuple(
            Feature(
                name=name, level=Level.USER, dtype="float32", compute=Together(table, 0), doc="none"
            )
            for name in ("a", "b")
        )
    )
    with pytest.raises(ValueError, match="a to b: 2 values a row declared, got 5"):
        assemble.assemble_users(features, user_context())


def test_an_attribute_is_that_of_its_own_user() -> None:
    context = user_context()
    found = assemble.assemble_users(CATALOG, context).longs
    ages = found[:, CATALOG.slices(Level.USER, "int64")["profile_age"]][:, 0].tolist()
    rows, expected = context.rows, []
    for start, stop in pairwise(rows.profile_splits.tolist()):
        names = rows.profile_name[start:stop].tolist()
        held = dict(zip(names, rows.profile_value[start:stop].tolist(), strict=True))
        expected.append(held.get(hash_id("age"), 0))
    assert ages == expected
    assert len(set(ages)) > 1
