"""
Backfill: what users were shown, or did, in the past becomes examples.

The live fold, begun anew at the start of a range of user-events, and the live assembly: each
example has its user's row as it stood before the event, and its item as it stood in the hours
before. An example is one event, in the place of a list of one.

Rows of different users do not know of each other. So the events of a chunk are cut into rounds: a
user's part of a round begins with an event that makes an example, and one call of the fold takes
all users' parts. Before it, the rows are what the examples see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import rows
from features.archive import ArchiveWriter, Manifest
from features.assemble import assemble_items, assemble_users
from features.catalog import TARGETS
from features.declare import FeatureSet, ItemContext, UserContext
from features.example_bytes import encode, framed
from features.examples import LABELS, Examples, ExampleSource, concat, take
from features.fold import fold
from features.history import History, HistoryItems, item_hours, text_hashes
from features.ragged import spans
from features.rows import Rows
from schemas.events import EventType

KIND: Final = "history"
SUFFIX: Final = ".tfrecord.gz"
# Examples assembled at once: the rows of so many users fit the cache no more, but calls are few.
_ASSEMBLE: Final = 2_048
FILE_BYTES: Final = 256_000_000  # before compression

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillPolicy:
    """Which events become examples, and what their labels are."""

    window_ms: int = 30 * 60_000  # how long after it an event on the item is its label
    examples_of: tuple[EventType, ...] = (EventType.IMPRESSION,)
    self_label: bool = False  # the event is its own label (data sets without impressions)
    unasked: bool = False  # only events that name no request: the join has the others
    surfaces: tuple[str, ...] = ()  # only events of these; empty: of all
    from_ms: int = 0  # only events at or after this event time ...
    until_ms: int = 2**62  # ... and before this one
    since: tuple[
        tuple[int, int], ...
    ] = ()  # (partition, offset): only events from there on, added to the examples before
    chunk_events: int = 32_768  # folded between two looks at memory and progress

    def __post_init__(self) -> None:
        if self.since and not self.self_label:
            # What followed the last events of the earlier backfill was not known to it yet.
            raise ValueError("only examples that are their own label can be added to earlier ones")

    @classmethod
    def of_interactions(cls, **changes: int) -> BackfillPolicy:
        """For what users did on their own, as in data sets that do not hold what was shown."""
        return cls(examples_of=TARGETS, self_label=True, unasked=True, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where the examples go. `writer` must be of KIND and SUFFIX."""

    writer: ArchiveWriter
    progress: Progress = lambda done, of: None


def backfill(
    history: History,
    items: HistoryItems,
    features: FeatureSet,
    policy: BackfillPolicy,
    to: Destination,
) -> Manifest:
    """
    Write the history's examples, in its order, instead of those that an earlier backfill wrote;
    with `since`, in addition to them.

    Raises:
        PositionMoved: another backfill has begun.
        ArchiveUnavailable: the disk failed or is full; what was there before stands.
    """
    for chunk in make_examples(history, items, features, policy, to.progress):
        if len(chunk):
            content = framed(encode(chunk, features))
            to.writer.append(content, len(chunk), int(chunk.event_time[0]))
        if to.writer.pending_bytes >= FILE_BYTES:
            to.writer.roll()
    position = {f"user-events/{p}": end for p, end in history.ends.items()}
    return to.writer.commit(position, replace_files=not policy.since)


def make_examples(
    history: History,
    items: HistoryItems,
    features: FeatureSet,
    policy: BackfillPolicy,
    progress: Progress = lambda done, of: None,
) -> Iterator[Examples]:
    """
    The examples, chunk by chunk, in the order of the history.

    `items` comes with the catalogue; the history's events are put into it here.
    """
    accepted = fold_all(history, features)
    items.put_hours([item_hours(history, accepted)])
    yield from examples_of(history, accepted, items, features, policy, progress)


def examples_of(
    history: History,
    accepted: NDArray[np.bool_],
    items: HistoryItems,
    features: FeatureSet,
    policy: BackfillPolicy,
    progress: Progress = lambda done, of: None,
) -> Iterator[Examples]:
    """As `make_examples`, when it is known what the fold accepts and what was done to items."""
    wanted = chosen(history, accepted, policy)
    labels = labels_of(history, accepted, wanted, policy)
    made = _Maker(history, items, features)
    store = RowStore(history.users, features.fingerprint)
    for start in range(0, len(history), policy.chunk_events):
        stop = min(start + policy.chunk_events, len(history))
        index = np.arange(start, stop)
        parts = [
            made.examples(at, before, labels[np.searchsorted(wanted, at)])
            for at, before in _gathered(rounds(history, index, wanted, store, features))
        ]
        progress(stop, len(history))
        if parts:
            found = concat([part for part, _ in parts])
            yield take(found, np.argsort(np.concatenate([at for _, at in parts])))


class RowStore:
    """Every user's row, by code, in its stored form."""

    def __init__(self, users: int, fingerprint: str) -> None:
        self._values: list[bytes | None] = [None] * users
        self._fingerprint = fingerprint

    def get(self, codes: NDArray[np.int64]) -> Rows:
        return rows.decode([self._values[i] for i in codes.tolist()], self._fingerprint).rows

    def put(self, codes: NDArray[np.int64], found: Rows) -> None:
        for code, value in zip(codes.tolist(), rows.encode(found, self._fingerprint), strict=True):
            self._values[code] = value


def fold_all(history: History, features: FeatureSet, batch: int = 8_192) -> NDArray[np.bool_]:
    """[n] which events the fold accepts."""
    store = RowStore(history.users, features.fingerprint)
    accepted = np.zeros(len(history), np.bool_)
    for start in range(0, len(history), batch):
        index = np.arange(start, min(start + batch, len(history)))
        codes, row = np.unique(history.events.row[index], return_inverse=True)
        events = replace(history.events.take(index), row=row)
        folded = fold(store.get(codes), events, features.row)
        store.put(codes, folded.rows)
        accepted[index] = folded.accepted
    return accepted


def chosen(
    history: History, accepted: NDArray[np.bool_], policy: BackfillPolicy
) -> NDArray[np.int64]:
    """Index of the events that become examples, ascending."""
    events = history.events
    time = events.event_time_ms
    wanted = accepted & (events.item != 0)
    wanted &= np.isin(events.event_type, [int(kind) for kind in policy.examples_of])
    wanted &= (time >= policy.from_ms) & (time < policy.until_ms)
    if policy.since:
        first = np.zeros(1 + max(p for p, _ in policy.since), np.int64)
        first[[p for p, _ in policy.since]] = [offset for _, offset in policy.since]
        partition = np.minimum(history.frame["partition"].to_numpy(), len(first) - 1)
        wanted &= history.frame["offset"].to_numpy() >= first[partition]
    if policy.unasked:
        wanted &= history.frame["request_id"].is_null().to_numpy()
    if policy.surfaces:
        named = history.frame["surface"].is_in(list(policy.surfaces)).fill_null(value=False)
        wanted &= named.to_numpy()
    if not policy.self_label:
        # What follows an event near the end of its partition is not known yet.
        partition = history.frame["partition"].to_numpy()
        ends = np.zeros(int(partition.max(initial=0)) + 1, np.int64)
        np.maximum.at(ends, partition, history.clock_ms)
        wanted &= time + policy.window_ms <= ends[partition]
    return np.flatnonzero(wanted)


def labels_of(
    history: History,
    accepted: NDArray[np.bool_],
    wanted: NDArray[np.int64],
    policy: BackfillPolicy,
) -> NDArray[np.int64]:
    """[len(wanted), LABELS] what followed each example, or what it is."""
    events = history.events
    labels = np.zeros((len(wanted), LABELS), np.int64)
    if policy.self_label:
        labels[np.arange(len(wanted)), events.event_type[wanted]] = 1
        return labels
    followers = np.flatnonzero(accepted & (events.item != 0))
    # All events of a user on an item side by side, in the history's order.
    order = followers[np.lexsort((followers, events.item[followers], events.row[followers]))]
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (events.row[order[1:]] != events.row[order[:-1]]) | (
        events.item[order[1:]] != events.item[order[:-1]]
    )
    group = np.cumsum(starts) - 1
    ends = np.append(np.flatnonzero(starts), len(order))[1:]
    place = np.zeros(len(history), np.int64)
    place[order] = np.arange(len(order))
    first = place[wanted] + 1
    count = ends[group[place[wanted]]] - first
    example = np.repeat(np.arange(len(wanted)), count)
    event = order[spans(first, count)]
    shown_ms = events.event_time_ms[wanted][example]
    done_ms = events.event_time_ms[event]
    fits = (done_ms >= shown_ms) & (done_ms <= shown_ms + policy.window_ms)
    fits &= _same_request(history.frame["request_id"], wanted[example], event)
    np.add.at(labels, (example[fits], events.event_type[event[fits]]), 1)
    return labels


def rounds(
    history: History,
    index: NDArray[np.int64],
    wanted: NDArray[np.int64],
    store: RowStore,
    features: FeatureSet,
) -> Iterator[tuple[NDArray[np.int64], Rows]]:
    """
    Fold the events `index` and yield, on the way, the examples among them with their users' rows
    as they stood before.
    """
    events = history.events.take(index)
    codes, user = np.unique(events.row, return_inverse=True)
    begins = np.isin(index, wanted, assume_unique=True)
    number = _running_count(user, begins)
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(int(number.max(initial=0)) + 2))
    last = np.zeros(len(codes), np.int64)
    np.maximum.at(last, user, number)
    live, current = np.arange(len(codes)), store.get(codes)  # users with events left, their rows
    for n in range(len(bounds) - 1):
        mine = order[bounds[n] : bounds[n + 1]]
        row = np.searchsorted(live, user[mine])
        at = np.flatnonzero(begins[mine])
        if len(at):
            yield index[mine[at]], rows.take(current, row[at])
        current = fold(current, replace(events.take(mine), row=row), features.row).rows
        done = last[live] == n
        if done.any():
            store.put(codes[live[done]], rows.take(current, np.flatnonzero(done)))
            current = rows.take(current, np.flatnonzero(~done))
            live = live[~done]


class _Maker:
    """Assembles examples from rows."""

    def __init__(self, history: History, items: HistoryItems, features: FeatureSet) -> None:
        frame = history.frame
        self._history = history
        self._items = items
        self._features = features
        self._context = {
            name: text_hashes(frame[name]) for name in ("surface", "device", "country")
        }

    def examples(
        self, at: NDArray[np.int64], before: Rows, labels: NDArray[np.int64]
    ) -> tuple[Examples, NDArray[np.int64]]:
        """One example for each event `at`; with them, `at`."""
        events, frame = self._history.events, self._history.frame[at]
        users = UserContext(
            rows=before,
            now_ms=events.event_time_ms[at],
            **{name: hashes[at] for name, hashes in self._context.items()},
        )
        hashes = events.item[at]
        items = ItemContext(
            users=users,
            request=np.arange(len(at)),
            hashes=hashes,
            items=self._items,
            index=self._items.index(hashes),
        )
        found = Examples(
            request_id=frame["request_id"].fill_null(frame["event_id"]).to_list(),
            user_id=frame["user_id"].to_list(),
            item_id=frame["item_id"].to_list(),
            source=[ExampleSource.HISTORY.value] * len(at),
            surface=frame["surface"].fill_null("").to_list(),
            fingerprint=self._features.fingerprint,
            position=frame["position"].fill_null(-1).to_numpy().astype(np.int64),
            event_time=users.now_ms,
            model_version=np.zeros(len(at), np.int64),
            events_partition=frame["partition"].to_numpy(),
            events_offset=frame["offset"].to_numpy(),
            item_hash=hashes,
            users=assemble_users(self._features, users),
            items=assemble_items(self._features, items),
            labels=labels,
        )
        return found, at


def _gathered(
    found: Iterator[tuple[NDArray[np.int64], Rows]],
) -> Iterator[tuple[NDArray[np.int64], Rows]]:
    """The same, some thousand examples at a time."""
    at: list[NDArray[np.int64]] = []
    before: list[Rows] = []
    for index, part in found:
        at.append(index)
        before.append(part)
        if sum(map(len, at)) >= _ASSEMBLE:
            yield np.concatenate(at), rows.concat(before)
            at, before = [], []
    if at:
        yield np.concatenate(at), rows.concat(before)


def _running_count(user: NDArray[np.int64], begins: NDArray[np.bool_]) -> NDArray[np.int64]:
    """
    How many of its user's events up to and with each one begin a part, [n].

    >>> _running_count(np.array([0, 1, 0, 0]), np.array([True, False, False, True])).tolist()
    [1, 0, 1, 2]
    """
    order = np.argsort(user, kind="stable")
    counts = np.cumsum(begins[order])
    first = np.ones(len(order), np.bool_)
    first[1:] = user[order[1:]] != user[order[:-1]]
    base: NDArray[np.int64] = (counts - begins[order])[first]
    found = np.empty(len(order), np.int64)
    found[order] = counts - base[np.cumsum(first) - 1]
    return found


def _same_request(
    requests: pl.Series, shown: NDArray[np.int64], done: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each event names no request, or the one that the example was shown for."""
    named = requests.gather(done)
    fits = named.is_null() | (named == "") | (named == requests.gather(shown))
    return fits.fill_null(value=False).to_numpy()
