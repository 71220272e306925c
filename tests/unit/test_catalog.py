"""The standard feature set: declared once, computed as declared, the same in any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features import assemble
from features.catalog import CATALOG, describe
from features.declare import (
    DAY_MS,
    HOUR_MS,
    Array,
    Feature,
    FeatureSet,
    ItemContext,
    Level,
    RowPolicy,
    UserContext,
)
from features.fold import EventColumns, fold
from features.hashing import hash_id, hash_ids
from features.items import ItemTable, empty_partials, encode_partials, fold_partials
from features.rows import Rows, empty, take
from schemas.events import EventType, Item, ItemFeatures

NOW = 20_000 * DAY_MS + 6 * HOUR_MS
MINUTE = 60_000

# When this fails, the set has changed: stored rows and models of the old one no longer fit it. If
# that is what you want, put the new fingerprint here; if only a computation changed its meaning,
# raise its `revision` first; if nothing should have changed, find out what did.
GOLDEN = "aebac350dfffd13f"


def test_the_fingerprint_changes_only_on_purpose() -> None:
    assert CATALOG.fingerprint == GOLDEN


def events(*given: tuple[int, str, EventType, int]) -> EventColumns:
    n = len(given)
    return EventColumns(
        row=np.array([row for row, *_ in given], np.int64),
        event_id=np.arange(1, n + 1, dtype=np.uint64),
        item=hash_ids([item for _, item, *_ in given]),
        event_type=np.array([kind for _, _, kind, _ in given], np.uint8),
        event_time_ms=np.array([at for *_, at in given], np.int64),
        value=np.full(n, np.nan, np.float32),
        erase=np.zeros(n, np.bool_),
    )


def rows_of(n: int, *given: tuple[int, str, EventType, int]) -> Rows:
    return fold(empty(n), events(*given), CATALOG.row).rows


def users(rows: Rows, now_ms: int = NOW) -> UserContext:
    none = np.zeros(len(rows), np.uint64)
    now = np.full(len(rows), now_ms)
    return UserContext(rows=rows, now_ms=now, surface=none, device=none, country=none)


def candidates(users: UserContext, table: ItemTable, *wanted: tuple[int, str]) -> ItemContext:
    hashes = hash_ids([item for _, item in wanted])
    return ItemContext(
        users=users,
        request=np.array([request for request, _ in wanted], np.int64),
        hashes=hashes,
        items=table,
        index=table.index(hashes),
    )


def of_users(context: UserContext) -> dict[str, Array]:
    found = assemble.assemble_users(CATALOG, context)
    return assemble.named(CATALOG, Level.USER, found.longs, found.floats)


def of_items(context: ItemContext) -> dict[str, Array]:
    found = assemble.assemble_items(CATALOG, context)
    return assemble.named(CATALOG, Level.ITEM, found.longs, found.floats)


@pytest.fixture
def table() -> ItemTable:
    found = ItemTable(CATALOG.fingerprint)
    found.put_items(
        [
            Item(item_id="a", title="A", categories=("x", "y"), creator="c", price=9.0),
            Item(item_id="b", title="B", categories=("x",), published_at=NOW - 3 * DAY_MS),
            Item(item_id="n", title="N"),
        ]
    )
    return found


CLICK, VIEW, SHOWN = EventType.CLICK, EventType.VIEW, EventType.IMPRESSION


def test_history_is_padded_in_front_and_newest_last() -> None:
    rows = rows_of(2, (0, "a", CLICK, NOW - 2000), (0, "b", VIEW, NOW - 1000))
    found = of_users(users(rows))
    assert found["history_items"].shape == (2, 50)
    last = found["history_items"].view(np.uint64)[0, -3:].tolist()
    assert last == [0, hash_id("a"), hash_id("b")]
    assert found["history_types"][0, -3:].tolist() == [0, CLICK, VIEW]
    assert found["history_ages"][0, -3:] == pytest.approx([0, np.log(3), np.log(2)])
    assert not found["history_values"].any()
    assert not found["history_items"][1].any()


def test_windows_slide_although_no_event_comes() -> None:
    """The one event is in the first minute of an hour and of a day."""
    midnight = 20_000 * DAY_MS
    rows = rows_of(1, (0, "a", CLICK, midnight))
    names = [f"user_clicks_{w}" for w in ("1h", "24h", "7d", "30d")]

    def seen(now_ms: int) -> list[float]:
        found = of_users(users(rows, now_ms))
        return [round(float(np.expm1(found[name][0])), 6) for name in names]

    assert seen(midnight) == [1, 1, 1, 1]
    assert seen(midnight + HOUR_MS - 1) == [1, 1, 1, 1]
    assert seen(midnight + HOUR_MS) == [1, 1, 1, 1]
    # From here on the hour's bucket is the oldest, of which less and less is within the window.
    assert seen(midnight + HOUR_MS + 15 * MINUTE) == [0.75, 1, 1, 1]
    assert seen(midnight + 2 * HOUR_MS) == [0, 1, 1, 1]
    assert seen(midnight + 24 * HOUR_MS + 45 * MINUTE) == [0, 0.25, 1, 1]
    assert seen(midnight + 25 * HOUR_MS) == [0, 0, 1, 1]
    assert seen(midnight + 7 * DAY_MS + 6 * HOUR_MS) == [0, 0, 0.75, 1]
    assert seen(midnight + 8 * DAY_MS) == [0, 0, 0, 1]
    assert seen(midnight + 30 * DAY_MS + 12 * HOUR_MS) == [0, 0, 0, 0.5]
    assert seen(midnight + 31 * DAY_MS) == [0, 0, 0, 0]


def test_an_hour_counts_what_came_before_the_hour_struck() -> None:
    """Of 60 events a minute apart, the last hour has all 60, whenever within an hour it ends."""
    for minute in (1, 10, 30, 59):
        now = NOW + minute * MINUTE
        rows = rows_of(1, *[(0, "a", CLICK, now - i * MINUTE) for i in range(120)])
        found = np.expm1(of_users(users(rows, now))["user_clicks_1h"][0])
        assert found == pytest.approx(60, abs=1.5), minute


def test_decayed_counts_halve_with_every_half_life() -> None:
    rows = rows_of(1, (0, "a", CLICK, NOW), (0, "a", VIEW, NOW))

    def seen(days: int) -> list[float]:
        found = of_users(users(rows, NOW + days * DAY_MS))
        return [float(np.expm1(found[f"user_positives_decayed_{h}d"][0])) for h in (1, 7)]

    # At NOW, six in the morning, the events of the day are taken to be three hours old.
    assert seen(0) == pytest.approx([2 ** -(3 / 24), 2 ** -(3 / 24 / 7)], rel=1e-5)
    middle = (18 - 12) / 24  # a day later they are as old as noon is
    assert seen(1) == pytest.approx([2 ** -(middle + 0.5), 2 ** -((middle + 0.5) / 7)], rel=1e-5)
    assert seen(8)[0] == pytest.approx(seen(1)[0] / 2**7, rel=1e-5)
    assert seen(8)[1] == pytest.approx(seen(1)[1] / 2, rel=1e-5)
    assert seen(-2) == [0, 0]  # days after now


def test_rates_are_shrunk_towards_the_prior_by_what_is_not_known() -> None:
    assert of_users(users(empty(1)))["user_click_rate_24h"][0] == np.float32(1 / 20)
    shown = [(0, f"i{n}", SHOWN, NOW) for n in range(80)]
    clicked = [(0, f"i{n}", CLICK, NOW) for n in range(9)]
    found = of_users(users(rows_of(1, *shown, *clicked)))
    assert found["user_click_rate_1h"][0] == np.float32((9 + 1) / (80 + 20))
    assert found["user_purchase_rate_30d"][0] == np.float32(1 / 100)


def test_recent_items_are_told_by_type() -> None:
    clicks = [(0, f"c{n}", CLICK, NOW + n) for n in range(7)]
    rows = rows_of(2, *clicks, (0, "v", VIEW, NOW), (1, "w", VIEW, NOW))
    found = of_users(users(rows, NOW + 10_000))
    last = found["recent_clicks"].view(np.uint64)
    assert last[0].tolist() == [hash_id(f"c{n}") for n in range(2, 7)]
    assert found["recent_views"].view(np.uint64)[:, -1].tolist() == [hash_id("v"), hash_id("w")]
    assert not found["recent_views"][:, :-1].any()
    assert not last[1].any()
    assert found["since_click"] == pytest.approx([np.log1p(10 - 0.006), 0])
    assert found["since_view"] == pytest.approx([np.log(11), np.log(11)])


def test_values_of_the_history_are_logarithms_that_keep_their_sign() -> None:
    given = replace(
        events((0, "a", CLICK, NOW), (0, "a", CLICK, NOW)), value=np.array([-3, 99], np.float32)
    )
    found = of_users(users(fold(empty(1), given, CATALOG.row).rows))
    assert found["history_values"][0, -2:] == pytest.approx([-np.log(4), np.log(100)])


def test_what_comes_after_now_is_not_counted() -> None:
    rows = rows_of(1, (0, "a", CLICK, NOW + DAY_MS))
    found = of_users(users(rows, NOW))
    assert found["user_clicks_24h"][0] == found["user_clicks_30d"][0] == 0


def test_a_session_ends_with_a_gap_of_half_an_hour() -> None:
    times = [NOW - 90 * MINUTE, NOW - 50 * MINUTE, NOW - 29 * MINUTE]
    rows = rows_of(1, *[(0, "a", CLICK, at) for at in times])
    assert of_users(users(rows))["session_length"][0] == pytest.approx(np.log(3))
    assert of_users(users(rows, NOW + 2 * MINUTE))["session_length"][0] == 0


def test_a_session_has_an_age_and_items() -> None:
    times = [(0, "old", CLICK, NOW - 90 * MINUTE)]
    times += [(0, item, CLICK, NOW - at * MINUTE) for item, at in (("a", 40), ("b", 20), ("a", 1))]
    found = of_users(users(rows_of(2, *times)))
    assert found["session_age"] == pytest.approx([np.log1p(40 * 60), 0])
    assert found["session_items"] == pytest.approx([np.log(3), 0])
    assert found["session_length"] == pytest.approx([np.log(4), 0])


def test_time_of_day_is_a_circle() -> None:
    found = of_users(users(empty(1)))  # NOW is at six in the morning
    assert (found["hour_sin"][0], found["hour_cos"][0]) == pytest.approx((1, 0), abs=1e-6)


def test_an_empty_row_gives_finite_defaults(table: ItemTable) -> None:
    context = users(empty(1))
    for found in (of_users(context), of_items(candidates(context, table, (0, "a"), (0, "?")))):
        for name, values in found.items():
            assert np.isfinite(values).all(), name


def test_affinity_is_the_share_of_the_history_that_matches(table: ItemTable) -> None:
    clicks = [(0, item, CLICK, NOW) for item in ("a", "b", "b", "unheard-of")]
    context = users(rows_of(2, *clicks))
    found = of_items(candidates(context, table, (0, "a"), (0, "b"), (1, "a"), (0, "n"), (0, "?")))
    # x: a b b of 4; y: a of 4; a candidate's share is the mean over its categories.
    assert found["category_affinity"].tolist() == [0.5, 0.75, 0, 0, 0]
    assert found["creator_affinity"].tolist() == [0.25, 0, 0, 0, 0]


def test_affinity_to_what_was_liked_looks_at_positives_only(table: ItemTable) -> None:
    looked = [(0, "b", VIEW, NOW)] * 3
    context = users(rows_of(1, (0, "a", CLICK, NOW), (0, "n", CLICK, NOW), *looked))
    found = of_items(candidates(context, table, (0, "a"), (0, "b")))
    assert found["category_affinity"] == pytest.approx([0.5, 0.8])
    assert found["category_positives"] == pytest.approx([0.5, 0.5])
    assert found["creator_positives"] == pytest.approx([0.5, 0])


def test_items_are_looked_up_and_unknown_ones_are_marked(table: ItemTable) -> None:
    found = of_items(candidates(users(empty(1)), table, (0, "a"), (0, "b"), (0, "?")))
    assert found["item"].view(np.uint64).tolist() == [hash_id(i) for i in ("a", "b", "?")]
    assert found["item_known"].tolist() == [1, 1, 0]
    assert found["item_categories"].view(np.uint64)[:, 0].tolist() == [hash_id("x")] * 2 + [0]
    assert found["item_creator"].view(np.uint64).tolist() == [hash_id("c"), 0, 0]
    assert found["item_price"] == pytest.approx([np.log(10), 0, 0])
    assert found["item_age"] == pytest.approx([0, np.log(4), 0])


def with_aggregates(table: ItemTable) -> ItemTable:
    clicked = np.array([NOW - HOUR_MS] * 3 + [NOW], np.int64)
    partial = fold_partials(
        empty_partials(1), np.zeros(4, np.int64), np.full(4, CLICK, np.uint8), clicked, CATALOG.row
    )
    for item_id in ("a", "events-only"):
        table.put_partials(
            [
                ItemFeatures(
                    item_id=item_id,
                    partition=0,
                    fingerprint=CATALOG.fingerprint,
                    events_offset=4,
                    partial=encode_partials(partial, CATALOG.fingerprint)[0],
                )
            ]
        )
    return table


def test_an_items_counts_leave_out_the_hour_of_now(table: ItemTable) -> None:
    found = of_items(candidates(users(empty(1)), with_aggregates(table), (0, "a"), (0, "b")))
    assert found["item_clicks_24h"] == pytest.approx([np.log(4), 0])
    assert found["item_clicks_7d"].tolist() == [0, 0]  # the day of now is not over


def test_an_item_that_only_events_name_is_not_known(table: ItemTable) -> None:
    found = of_items(candidates(users(empty(1)), with_aggregates(table), (0, "events-only")))
    assert found["item_known"].tolist() == [0]
    assert found["item_clicks_24h"] == pytest.approx([np.log(4)])


def random_rows(n: int) -> Rows:
    rng = np.random.default_rng(3)
    many = 40 * n
    given = replace(
        events(*[(0, "", CLICK, NOW)] * many),
        row=rng.integers(0, n, many),
        item=hash_ids(["a", "b", "n", "?"])[rng.integers(0, 4, many)],
        event_type=rng.integers(0, 11, many).astype(np.uint8),
        event_time_ms=NOW - rng.integers(0, 40 * DAY_MS, many),
    )
    return fold(empty(n), given, replace(CATALOG.row, horizon_ms=50 * DAY_MS)).rows


def test_features_do_not_depend_on_who_else_is_in_the_batch(table: ItemTable) -> None:
    rows, table = random_rows(12), with_aggregates(table)
    rng = np.random.default_rng(4)
    context = replace(
        users(rows),
        now_ms=NOW + rng.integers(-2 * DAY_MS, 2 * DAY_MS, 12),
        surface=rng.integers(0, 9, 12).astype(np.uint64),
    )
    names = ["a", "b", "n", "?", "events-only"]
    wanted = [
        (int(r), names[i])
        for r, i in zip(rng.permutation(36) % 12, rng.integers(0, 5, 36), strict=True)
    ]
    all_users = assemble.assemble_users(CATALOG, context)
    all_items = assemble.assemble_items(CATALOG, candidates(context, table, *wanted))
    for n, (request, item) in enumerate(wanted):
        only = np.array([request])
        alone = UserContext(
            rows=take(rows, only),
            **{k: getattr(context, k)[only] for k in ("now_ms", "surface", "device", "country")},
        )
        user = assemble.assemble_users(CATALOG, alone)
        found = assemble.assemble_items(CATALOG, candidates(alone, table, (0, item)))
        assert user.longs.tobytes() == all_users.longs[request].tobytes()
        assert user.floats.tobytes() == all_users.floats[request].tobytes()
        assert found.longs.tobytes() == all_items.longs[n].tobytes()
        assert found.floats.tobytes() == all_items.floats[n].tobytes()


def test_nobody_asks_for_nothing(table: ItemTable) -> None:
    context = users(empty(0))
    assert len(assemble.assemble_users(CATALOG, context)) == 0
    assert len(assemble.assemble_items(CATALOG, candidates(context, table))) == 0
    asked = users(empty(1))
    fresh = ItemTable(CATALOG.fingerprint)
    assert len(assemble.assemble_items(CATALOG, candidates(asked, fresh, (0, "a")))) == 1


def doubled(context: UserContext) -> Array:
    return np.stack([context.now_ms, context.now_ms * 2], axis=1)


NEW = Feature(
    name="brand_new", level=Level.USER, dtype="int64", compute=doubled, doc="now", length=2
)


def test_one_new_entry_is_all_it_takes_to_add_a_feature() -> None:
    grown = FeatureSet((*CATALOG.features, NEW), row=CATALOG.row)
    found = assemble.assemble_users(grown, users(empty(1)))
    assert found.longs.shape[1] == CATALOG.width(Level.USER, "int64") + 2
    views = assemble.named(grown, Level.USER, found.longs, found.floats)
    assert views["brand_new"].tolist() == [[NOW, 2 * NOW]]
    assert describe(grown)[-1]["name"] == "brand_new"
    assert grown.fingerprint != CATALOG.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        replace(NEW, revision=2),
        replace(NEW, length=3),
        replace(NEW, name="other"),
        replace(NEW, default=1),
        replace(NEW, dtype="float32"),
    ],
)
def test_every_property_that_others_rely_on_is_in_the_fingerprint(changed: Feature) -> None:
    assert FeatureSet((changed,)).fingerprint != FeatureSet((NEW,)).fingerprint


def test_the_rows_policy_is_in_the_fingerprint() -> None:
    other = FeatureSet((NEW,), row=RowPolicy(ring_length=9))
    assert other.fingerprint != FeatureSet((NEW,)).fingerprint


def test_a_computation_that_breaks_its_declaration_is_refused() -> None:
    with pytest.raises(ValueError, match="brand_new: 3 values a row declared, got 2"):
        assemble.assemble_users(FeatureSet((replace(NEW, length=3),)), users(empty(1)))


def test_matrices_of_another_set_are_refused() -> None:
    with pytest.raises(ValueError, match="wide"):
        assemble.named(CATALOG, Level.USER, np.zeros((1, 2), np.int64), np.zeros((1, 2), "f4"))


def test_every_feature_is_described() -> None:
    described = describe(CATALOG)
    assert [row["name"] for row in described] == [f.name for f in CATALOG.features]
    assert all(len(row["meaning"]) > 10 for row in described)
    assert {row["missing"] for row in described} == {"refused"}


def test_a_name_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="declared twice: brand_new"):
        FeatureSet((NEW, NEW))
