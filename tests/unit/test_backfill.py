"""Backfill: each example sees the past and nothing else, however the log was cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import archive, rows
from features.assemble import assemble_items, assemble_users
from features.backfill import (
    KIND,
    SUFFIX,
    BackfillPolicy,
    Destination,
    backfill,
    fold_all,
    make_examples,
)
from features.backfill_job import BackfillParts, backfill_log
from features.catalog import CATALOG
from features.declare import ItemContext, UserContext
from features.example_bytes import encode
from features.examples import Examples, concat
from features.fold import fold_one_by_one
from features.hashing import hash_ids
from features.history import History, HistoryItems
from features.items import (
    ItemTable,
    decode_partials,
    empty_partials,
    encode_partials,
    fold_partials,
)
from features.tiles import Window
from features.user_features import WINDOWS
from ingest.log import Outgoing
from ingest.memory import MemoryProducer, MemorySource
from ingest.topics import Topics, topic_specs
from schemas.codec import Codec
from schemas.events import EventType, Item, ItemFeatures, UserEvent
from tests.past import HOUR_MS, ITEMS, T0, TOPIC, Story, history, logged, story
from tests.tfexample import read_examples

POLICY = BackfillPolicy(window_ms=HOUR_MS)


def items() -> HistoryItems:
    return HistoryItems(CATALOG.fingerprint, ITEMS)


def made(past: History, policy: BackfillPolicy = POLICY) -> Examples:
    return concat([e for e in make_examples(past, items(), CATALOG, policy) if len(e)])


def one(user: str, item: str, at_ms: int, kind: EventType, **given: object) -> UserEvent:
    name = f"{user}{item}{at_ms}{kind}"
    return UserEvent(
        event_id=name,
        user_id=user,
        item_id=item,
        event_type=kind,
        event_time=T0 + at_ms,
        **given,  # type: ignore[arg-type]
    )


def told(*events: UserEvent) -> Story:
    return [(e.user_id, e, e.event_time) for e in events]


END = one("other", "i0", 50 * HOUR_MS, EventType.VIEW)


@pytest.mark.parametrize("chunk_events", [7, 64, 1_000])
@pytest.mark.parametrize("batch", [3, 500])
@pytest.mark.parametrize("turn", [1, -1])
def test_examples_are_equal_for_any_cut_and_order_of_partitions(
    chunk_events: int, batch: int, turn: int
) -> None:
    events = story(300)
    expected = encode(made(history(events)), CATALOG)
    found = made(
        history(events, batch=batch, turn=turn), replace(POLICY, chunk_events=chunk_events)
    )
    assert len(expected) > 40
    assert encode(found, CATALOG) == expected


def test_users_are_seen_as_an_event_by_event_fold_has_them_before_the_event() -> None:
    past = history(story(300))
    found = made(past)
    at = {
        (p, o): i for i, (p, o) in enumerate(past.frame.select("partition", "offset").iter_rows())
    }
    for n in range(len(found)):
        i = at[int(found.events_partition[n]), int(found.events_offset[n])]
        mine = np.flatnonzero(past.events.row[:i] == past.events.row[i])
        events = past.events.take(mine)
        events = replace(events, row=np.zeros(len(events), np.int64))
        row = fold_one_by_one(rows.empty(1), events, CATALOG.row).rows
        surface = hash_ids([found.surface[n] or None])
        context = UserContext(
            rows=row,
            now_ms=found.event_time[n : n + 1],
            surface=surface,
            device=np.zeros(1, np.uint64),
            country=np.zeros(1, np.uint64),
        )
        expected = assemble_users(CATALOG, context)
        assert expected.longs.tobytes() == found.users.longs[n : n + 1].tobytes()
        assert expected.floats.tobytes() == found.users.floats[n : n + 1].tobytes()


def test_items_are_seen_as_the_live_table_has_them_at_the_start_of_the_hour() -> None:
    past = history(on_time(story(400, seed=3)))
    table = items()
    found = concat([e for e in make_examples(past, table, CATALOG, POLICY) if len(e)])
    everything = np.flatnonzero(past.events.item != 0)
    for n in range(0, len(found), 5):
        now = int(found.event_time[n])
        before = everything[past.events.event_time_ms[everything] < now // HOUR_MS * HOUR_MS]
        live = live_table(past, accepted(past, before))
        # A real table learns of an item by its events; the past knows all of them.
        shown, at = found.item_hash[n : n + 1], found.event_time[n : n + 1]
        expected = live.window_tables(live.index(shown), at, WINDOWS)
        seen = table.window_tables(table.index(shown), at, WINDOWS)
        assert seen.tolist() == expected.tolist()
        context = item_context(found, n, live)
        if context.index[0] >= 0:
            features = assemble_items(CATALOG, context)
            names = CATALOG.slices("item", "float32")  # type: ignore[arg-type]
            for name in ("item_clicks_7d", "item_positives_30d", "item_click_rate_7d"):
                assert features.floats[0, names[name]] == found.items.floats[n, names[name]]


def on_time(events: Story) -> Story:
    """Without late events: the live table files those under the hour that they name."""
    newest, kept = 0, []
    for user, value, at_ms in events:
        if value is None or value.event_time >= newest:
            newest = newest if value is None else value.event_time
            kept.append((user, value, at_ms))
    return kept


def accepted(past: History, index: np.ndarray) -> np.ndarray:
    return index[fold_all(past, CATALOG)[index]]


def live_table(past: History, index: np.ndarray) -> ItemTable:
    table = ItemTable(CATALOG.fingerprint)
    table.put_items(ITEMS)
    names = past.frame["item_id"].gather(index).to_list()
    ids = list(dict.fromkeys(names))
    partials = fold_partials(
        empty_partials(len(ids)),
        np.array([ids.index(name) for name in names], np.int64),
        past.events.event_type[index],
        past.events.event_time_ms[index],
        CATALOG.row,
    )
    stored = encode_partials(partials, CATALOG.fingerprint)
    assert not decode_partials(stored, CATALOG.fingerprint).corrupt
    table.put_partials(
        [
            ItemFeatures(
                item_id=name,
                partition=0,
                fingerprint=CATALOG.fingerprint,
                events_offset=0,
                partial=value,
            )
            for name, value in zip(ids, stored, strict=True)
        ]
    )
    return table


def item_context(found: Examples, n: int, table: ItemTable) -> ItemContext:
    hashes = found.item_hash[n : n + 1]
    none = np.zeros(1, np.uint64)
    users = UserContext(
        rows=rows.empty(1),
        now_ms=found.event_time[n : n + 1],
        surface=none,
        device=none,
        country=none,
    )
    return ItemContext(
        users=users,
        request=np.zeros(1, np.int64),
        hashes=hashes,
        items=table,
        index=table.index(hashes),
    )


# Leaks


class LeakyItems(HistoryItems):
    """A table with a planted leak: the hour of now is counted."""

    def window_tables(
        self, index: np.ndarray, now_ms: np.ndarray, windows: tuple[Window, ...]
    ) -> np.ndarray:
        return super().window_tables(index, now_ms + HOUR_MS, windows)


def leaks(events: Story, table: type[HistoryItems]) -> int:
    """How many examples look different when what the log held after them is cut off."""
    policy = BackfillPolicy.of_interactions()

    def features(past: History) -> dict[tuple[int, int], bytes]:
        catalogue = table(CATALOG.fingerprint, ITEMS)
        found = concat([e for e in make_examples(past, catalogue, CATALOG, policy) if len(e)])
        return {
            (int(found.events_partition[n]), int(found.events_offset[n])): b"".join(
                part[n].tobytes()
                for level in (found.users, found.items)
                for part in (level.longs, level.floats)
            )
            for n in range(len(found))
        }

    whole = features(history(events))
    different = 0
    for cut in range(20, len(events), 9):
        for place, seen in features(history(events[:cut])).items():
            different += seen != whole[place]
    return different


def test_no_feature_changes_when_the_future_is_cut_off() -> None:
    assert leaks(story(150, seed=1), HistoryItems) == 0


def test_a_planted_leak_is_caught() -> None:
    assert leaks(story(150, seed=1), LeakyItems) > 0


# Labels


def test_labels_are_what_followed_on_the_item_within_the_window() -> None:
    shown = one("u", "i1", 0, EventType.IMPRESSION, position=4)
    past = history(
        told(
            one("u", "i1", -1_000, EventType.VIEW),
            shown,
            one("u", "i1", 0, EventType.CLICK),
            one("u", "i2", 10, EventType.CLICK),
            one("v", "i1", 10, EventType.CLICK),
            one("u", "i1", HOUR_MS, EventType.LIKE),
            one("u", "i1", HOUR_MS, EventType.LIKE),  # the same event again
            one("u", "i1", HOUR_MS + 1, EventType.SHARE),
            END,
        ),
        partitions=1,
    )
    found = made(past)
    assert len(found) == 1
    assert dict(enumerate(found.labels[0].tolist())) == {
        kind: int(kind in (EventType.CLICK, EventType.LIKE)) for kind in range(11)
    }
    assert (found.user_id, found.item_id, found.source) == (["u"], ["i1"], ["history"])
    assert (found.position.tolist(), found.events_offset.tolist()) == ([4], [1])


def test_a_request_id_ties_an_event_to_its_impression() -> None:
    past = history(
        told(
            one("u", "i1", 0, EventType.IMPRESSION, request_id="a"),
            one("u", "i1", 1, EventType.IMPRESSION, request_id="b"),
            one("u", "i1", 2, EventType.CLICK, request_id="b"),
            END,
        ),
        partitions=1,
    )
    assert made(past).labels[:, EventType.CLICK].tolist() == [0, 1]


def test_an_impression_whose_window_is_not_over_is_left_out() -> None:
    past = history(
        told(
            one("u", "i1", 0, EventType.IMPRESSION),
            one("u", "i2", 1, EventType.IMPRESSION),
            one("u", "i3", HOUR_MS, EventType.VIEW),
        ),
        partitions=1,
    )
    assert made(past).item_id == ["i1"]


def test_an_interaction_is_its_own_label_and_not_in_its_own_history() -> None:
    past = history(
        told(one("u", "i1", 0, EventType.RATING), one("u", "i2", 1, EventType.RATING)),
        partitions=1,
    )
    found = made(past, BackfillPolicy.of_interactions())
    assert found.labels.sum(axis=0).tolist() == [0] * 9 + [2, 0]
    history_items = CATALOG.slices("user", "int64")["history_items"]  # type: ignore[arg-type]
    seen = found.users.longs[:, history_items].view(np.uint64)
    assert seen[:, -1].tolist() == [0, int(hash_ids(["i1"])[0])]


def test_only_the_surfaces_asked_for_give_examples() -> None:
    past = history(story(300))
    every, some = made(past), made(past, replace(POLICY, surfaces=("search",)))
    assert set(some.surface) == {"search"}
    assert len(some) == sum(surface == "search" for surface in every.surface)


# From the log to the archive


def test_the_log_becomes_an_archive_once_however_often_it_is_asked(tmp_path: Path) -> None:
    log, registry = logged(story(200), partitions=2)
    log.create_topics([s for s in topic_specs("", 2, replay=True) if s.name != TOPIC])
    producer, codec = MemoryProducer(log), Codec(registry, Item, "item-updates")
    for item in ITEMS:
        producer.send(
            Outgoing(topic="item-updates", key=item.item_id.encode(), value=codec.encode(item))
        )
    parts = BackfillParts(
        log=log,
        source=MemorySource(log),
        registry=registry,
        topics=Topics(),
        features=CATALOG,
        root=tmp_path,
    )
    seen: list[tuple[int, int]] = []
    first = backfill_log(parts, POLICY, lambda done, of: seen.append((done, of)))
    again = backfill_log(parts, POLICY)
    assert seen[-1][0] == seen[-1][1]
    assert again.records == first.records > 20
    assert [f.sha256 for f in again.files] == [f.sha256 for f in first.files]
    assert list(archive.verify(tmp_path, KIND)) == []
    (file,) = archive.files(tmp_path, KIND)
    records = read_examples(file)
    assert len(records) == first.records
    assert {r["fingerprint"][0].decode() for r in records} == {CATALOG.fingerprint}


def test_going_on_adds_the_examples_that_one_whole_backfill_would_have(tmp_path: Path) -> None:
    log, registry = logged(story(200), partitions=2)
    log.create_topics([s for s in topic_specs("", 2, replay=True) if s.name != TOPIC])

    def parts(name: str) -> BackfillParts:
        return BackfillParts(
            log=log,
            source=MemorySource(log),
            registry=registry,
            topics=Topics(),
            features=CATALOG,
            root=tmp_path / name,
        )

    def seen(name: str) -> list[tuple[bytes, ...]]:
        found = [r for file in archive.files(tmp_path / name, KIND) for r in read_examples(file)]
        return sorted((r["request_id"][0], r["item_id"][0]) for r in found)

    policy = BackfillPolicy.of_interactions()
    half = {p: end // 2 for p, (_, end) in log.bounds(TOPIC).items()}
    backfill_log(parts("steps"), policy, until=half)
    assert len(seen("steps")) > 0
    backfill_log(parts("steps"), policy, onward=True)
    backfill_log(parts("steps"), policy, onward=True)
    whole = backfill_log(parts("whole"), policy)
    assert seen("steps") == seen("whole")
    assert whole.records == len(seen("steps"))


def test_going_on_is_refused_for_labels_that_come_later() -> None:
    with pytest.raises(ValueError, match="their own label"):
        replace(POLICY, since=((0, 1),))


def test_a_backfill_that_dies_leaves_what_was_there(tmp_path: Path) -> None:
    past = history(story(200))

    def run(progress: object = None) -> archive.Manifest:
        first = archive.Manifest(
            kind=KIND,
            partition=0,
            sequence=0,
            generation=0,
            position={},
            log={},
            fingerprint=CATALOG.fingerprint,
        )
        writer = archive.claim(tmp_path, first, SUFFIX)
        to = Destination(writer=writer, **({"progress": progress} if progress else {}))  # type: ignore[arg-type]
        try:
            return backfill(past, items(), CATALOG, replace(POLICY, chunk_events=50), to)
        finally:
            writer.close()

    def die(done: int, of: int) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(die)
    assert archive.manifests(tmp_path, KIND)[0].files == expected.files
    assert list(archive.verify(tmp_path, KIND)) == []
    assert run().records == expected.records
