"""
Point in time: whether examples hold a value that the log did not hold before them.

Every example is made once more, from the user-events strictly before its offset and nothing else,
and compared bit by bit. What differs is a leak: a value from an offset at or after the impression's
own (or one that was computed otherwise, which is as bad). The fold here is the event-by-event one:
the check shares no short cut with what it checks.

Of examples that were served only the user's features are judged: the item table that a service
holds may be behind the log, which is no leak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features import rows
from features.assemble import assemble_items, assemble_users, named
from features.backfill import fold_all
from features.declare import Array, FeatureSet, ItemContext, Level, UserContext
from features.examples import Examples, ExampleSource
from features.fold import fold_one_by_one
from features.hashing import hash_id, hash_ids
from features.history import History, HistoryItems, item_hours, text_hashes
from schemas.events import Item

# What the request itself says of its surface, device and country; an example of a served list does
# not carry the latter two.
_OF_REQUEST: Final = ("request_surface", "request_device", "request_country")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """An example that is not what the log before it gives."""

    request_id: str
    user_id: str
    item_id: str
    partition: int
    offset: int  # the example may hold what is before it
    features: tuple[str, ...]  # those that differ


class PointInTime:
    """Checks examples against a history that holds the log from its beginning."""

    def __init__(self, history: History, features: FeatureSet, catalogue: Sequence[Item]) -> None:
        self._history = history
        self._features = features
        self._items = HistoryItems(features.fingerprint, catalogue)
        self._accepted = fold_all(history, features)
        self._partition = history.frame["partition"].to_numpy()
        self._offset = history.frame["offset"].to_numpy()
        self._user = hash_ids(history.frame["user_id"].to_list())
        self._context = {
            name: text_hashes(history.frame[name]) for name in ("surface", "device", "country")
        }

    def leaks(self, examples: Examples) -> Iterator[Leak]:
        """The examples that hold more, or something else, than the log before them."""
        for n in range(len(examples)):
            wrong = self._wrong(examples, n)
            if wrong:
                yield Leak(
                    request_id=examples.request_id[n],
                    user_id=examples.user_id[n],
                    item_id=examples.item_id[n],
                    partition=int(examples.events_partition[n]),
                    offset=int(examples.events_offset[n]),
                    features=wrong,
                )

    def _wrong(self, examples: Examples, n: int) -> tuple[str, ...]:
        """Names of one example's features that differ."""
        features = self._features
        users = self._user_before(examples, n)
        again = assemble_users(features, users)
        one = slice(n, n + 1)
        given = named(features, Level.USER, examples.users.longs[one], examples.users.floats[one])
        found = named(features, Level.USER, again.longs, again.floats)
        if examples.source[n] == ExampleSource.SERVED:
            return _differing(given, found, _OF_REQUEST)
        items = assemble_items(features, self._item_before(examples, n, users))
        given |= named(features, Level.ITEM, examples.items.longs[one], examples.items.floats[one])
        found |= named(features, Level.ITEM, items.longs, items.floats)
        return _differing(given, found, ())

    def _user_before(self, examples: Examples, n: int) -> UserContext:
        """The user's row of all events before the example, and what its own event says."""
        before = self._before(examples, n)
        mine = np.flatnonzero(before & (self._user == np.uint64(hash_id(examples.user_id[n]))))
        events = self._history.events.take(mine)
        events = replace(events, row=np.zeros(len(events), np.int64))
        own = np.flatnonzero(
            self._in_partition(examples, n) & (self._offset == self._at(examples, n))
        )
        context = {
            name: hashes[own[:1]] if len(own) else np.zeros(1, np.uint64)
            for name, hashes in self._context.items()
        }
        return UserContext(
            rows=fold_one_by_one(rows.empty(1), events, self._features.row).rows,
            now_ms=examples.event_time[n : n + 1],
            **context,
        )

    def _item_before(self, examples: Examples, n: int, users: UserContext) -> ItemContext:
        """The item as it stood without anything that its partition held from the example on."""
        hashes = examples.item_hash[n : n + 1]
        elsewhere = ~self._in_partition(examples, n)
        known = self._accepted & (self._before(examples, n) | elsewhere)
        known &= self._history.events.item == hashes[0]
        self._items.put_hours([item_hours(self._history, known)])
        return ItemContext(
            users=users,
            request=np.zeros(1, np.int64),
            hashes=hashes,
            items=self._items,
            index=self._items.index(hashes),
        )

    def _in_partition(self, examples: Examples, n: int) -> NDArray[np.bool_]:
        return np.asarray(self._partition == examples.events_partition[n], np.bool_)

    def _before(self, examples: Examples, n: int) -> NDArray[np.bool_]:
        return self._in_partition(examples, n) & (self._offset < self._at(examples, n))

    def _at(self, examples: Examples, n: int) -> int:
        return int(examples.events_offset[n])


def _differing(
    given: dict[str, Array], found: dict[str, Array], but: Sequence[str]
) -> tuple[str, ...]:
    return tuple(
        name
        for name, values in given.items()
        if name not in but and values.tobytes() != found[name].tobytes()
    )
