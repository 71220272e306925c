"""
The label join: lists that were shown x what their users did next, of one partition.

A list's labels are its user's events on its items at or after the user-events offset that it was
served with, with event time in [t, t + W], each event once. It closes at the first such offset
whose event time reaches t + W + lateness (event time alone, so batches may be cut anywhere and a
repetition closes it there too), or, in an idle partition, where `close_idle` says; that is noted.
Examples come out in the order of the lists. Nothing is kept but the position: the next list to
write. What an open list needs is read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures
from features.examples import LABELS, Examples, ExampleSource
from features.join_pieces import Piece, matches
from features.shown import Done, Shown, concat_lists, sliced

# Names of the position's parts, and of the parts of a note.
LISTS: Final = "recommendations"
EVENTS: Final = "user-events"

_NEVER: Final = np.int64(2**62)
# Events of one searchable piece: below it, new events are merged into the newest piece.
_PIECE: Final = 8_192
# Events kept, or read, although no list needs them: rather than to seek.
SPARE: Final = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinPolicy:
    """Which events are a list's labels, and when it closes."""

    window_ms: int = 30 * 60_000  # W: how long after the list an event counts for it
    lateness_ms: int = 5 * 60_000  # how long an event may be under way
    idle_close_s: float = 60.0  # nothing came for so long: close by wall clock

    def __post_init__(self) -> None:
        if self.window_ms < 1 or self.lateness_ms < 0 or self.idle_close_s < 0:
            raise ValueError(f"window, lateness and idle time must not be negative, got {self}")

    @property
    def open_ms(self) -> int:
        """How much event time passes until a list closes."""
        return self.window_ms + self.lateness_ms


JOIN_POLICIES: Final[Mapping[str, JoinPolicy]] = {
    "production": JoinPolicy(),
    "demo": JoinPolicy(window_ms=10_000, lateness_ms=2_000, idle_close_s=3.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of events, besides labels in time: for dashboards, of what a process has seen."""

    late_ms: NDArray[np.int64]  # of each late label, how long its event was under way
    unmatched: int  # events that name a request and became no label


class LabelJoin:
    """
    One partition's join. Pure: it does what it is told with the columns it is given.

    Read lists from `lists_next` and events from `events_next`, in any interleaving; both may move
    backwards or jump when lists are added (then seek). `take` what is ready; `position` then stands
    for everything taken.
    """

    def __init__(
        self,
        policy: JoinPolicy,
        *,
        partition: int,
        fingerprint: str,
        position: Mapping[str, int],
        notes: Sequence[Mapping[str, int]] = (),
        spare: int = SPARE,
    ) -> None:
        self._policy = policy
        self._spare = spare
        self._partition = partition
        self._fingerprint = fingerprint
        self._notes = [(note[LISTS], note[EVENTS]) for note in notes]
        self._new_notes: list[tuple[int, int]] = []
        self._parts: list[Shown] = []
        self._taken_of_first = 0  # lists of the first part that were taken
        self._needs = position[EVENTS]
        # Of the lists not taken, [n]:
        self._offset = np.zeros(0, np.int64)
        self._from = np.zeros(0, np.int64)  # user-events offset that the list was served with
        self._time = np.zeros(0, np.int64)
        self._closed = np.zeros(0, np.int64)  # it has labels of offsets below; _NEVER: not known
        # Events of [_events_start, events_next) whose time is at least _floor_ms.
        self._pieces: list[Piece] = []
        self._events_start = position[EVENTS]
        self._floor_ms = 0
        self._recent: list[tuple[Shown, NDArray[np.int64]]] = []
        self._heard = 0  # user-events offset up to which late labels were counted
        self._judged = 0  # ... and up to which unmatched ones were, of those kept
        self._late_ms: list[NDArray[np.int64]] = []
        self._unmatched = 0
        self.lists_next = position[LISTS]
        self.events_next = position[EVENTS]

    def __len__(self) -> int:
        """Lists that were added and not taken."""
        return len(self._offset)

    @property
    def waiting(self) -> bool:
        """Whether a list needs more events than were added."""
        return bool((self._closed > self.events_next).any())

    @property
    def position(self) -> dict[str, int]:
        """The next list to write; the smallest user-events offset that those not written need."""
        following = int(self._offset[0]) if len(self) else self.lists_next
        return {LISTS: following, EVENTS: self._needs}

    def notes(self) -> tuple[dict[str, int], ...]:
        """What was decided by wall clock since the last call: to be kept with the position."""
        notes = tuple({LISTS: before, EVENTS: at} for before, at in self._new_notes)
        self._new_notes = []
        return notes

    def outcomes(self) -> Outcomes:
        """What became of events since the last call."""
        found = Outcomes(
            late_ms=np.concatenate([np.zeros(0, np.int64), *self._late_ms]),
            unmatched=self._unmatched,
        )
        self._late_ms, self._unmatched = [], 0
        return found

    def add_lists(self, lists: Shown, next_offset: int) -> None:
        """Lists of [lists_next, next_offset)."""
        self.lists_next = next_offset
        if not len(lists):
            return
        self._parts.append(lists)
        self._offset = np.concatenate([self._offset, lists.offset])
        self._from = np.concatenate([self._from, lists.events_offset])
        self._time = np.concatenate([self._time, lists.event_time])
        self._closed = np.concatenate([self._closed, self._noted(lists)])
        self._needs = int(self._from.min())
        if self._covered():
            new = np.arange(len(self) - len(lists), len(self))
            for piece in self._pieces:
                self._close(new, piece.events)
        else:
            self._rewind()

    def add_events(self, events: Done, next_offset: int) -> None:
        """Events of [events_next, next_offset)."""
        self.events_next = next_offset
        piece = Piece.of(events)
        for lists, closed in self._recent:
            self._count_late([piece], lists, np.maximum(closed, self._heard))
        wanted = events.event_time >= self._floor_ms
        if not wanted.all():
            self._unmatched += piece.part(~wanted).unmatched(self._heard)
            piece = piece.part(wanted)
        self._heard = max(self._heard, next_offset)
        if len(piece.events):
            self._close(np.flatnonzero(self._closed == _NEVER), piece.events)
            last = self._pieces[-1] if self._pieces else None
            if last is not None and len(last.events) + len(piece.events) <= _PIECE:
                self._pieces[-1] = last.and_then(piece)
            else:
                self._pieces.append(piece)
        self._trim()

    def close_idle(self, now_ms: int) -> int:
        """
        Close, where the events stand now, the lists before the last that is due by wall clock.

        Returns:
            How many were closed. The caller knows that no event is on its way.
        """
        open_ = self._closed > self.events_next
        due = (self._time + self._policy.open_ms <= now_ms) & (self._from <= self.events_next)
        waits = np.flatnonzero(open_ & ~due)
        stop = int(waits[0]) if len(waits) else len(self)
        closing = np.flatnonzero(open_[:stop])
        if not len(closing):
            return 0
        note = (int(self._offset[closing[-1]]) + 1, self.events_next)
        self._notes.append(note)
        self._new_notes.append(note)
        self._closed[closing] = self.events_next
        return len(closing)

    def take(self, max_lists: int) -> Examples | None:
        """Examples of the next lists, as far as all before them are closed; None: not one."""
        ready = self._closed <= self.events_next
        n = min(len(ready) if ready.all() else int(np.argmin(ready)), max_lists)
        if n == 0:
            return None
        lists, closed = self._first(n), self._closed[:n]
        examples = self._examples(lists, closed)
        self._count_late(self._pieces, lists, closed)
        self._recent.append((lists, closed))
        for name in ("_offset", "_from", "_time", "_closed"):
            setattr(self, name, getattr(self, name)[n:])
        if len(self):
            self._needs = int(self._from.min())
        self._trim()
        return examples

    # Closing

    def _noted(self, lists: Shown) -> NDArray[np.int64]:
        """[n] where a note closes each list; _NEVER: none does."""
        closed = np.full(len(lists), _NEVER)
        for before, at in self._notes:
            applies = (lists.offset < before) & (lists.events_offset <= at)
            closed[applies] = np.minimum(closed[applies], at)
        return closed

    def _close(self, which: NDArray[np.int64], events: Done) -> None:
        """Close those of these lists that one of the events closes; events in log order."""
        if not len(events):
            return
        ends = self._time[which] + self._policy.open_ms
        inside = self._from[which] > events.offset[0]
        reached = np.searchsorted(np.maximum.accumulate(events.event_time), ends)
        for i in np.flatnonzero(inside).tolist():
            start = int(np.searchsorted(events.offset, self._from[which[i]]))
            late = np.flatnonzero(events.event_time[start:] >= ends[i])
            reached[i] = start + late[0] if len(late) else len(events)
        hit = reached < len(events)
        at = which[hit]
        self._closed[at] = np.minimum(self._closed[at], events.offset[reached[hit]])

    # What is kept of the events

    def _covered(self) -> bool:
        """Whether the events kept are all that the lists need, up to events_next."""
        inside = self._events_start <= self._needs <= self.events_next + self._spare
        return inside and int(self._time.min()) >= self._floor_ms

    def _rewind(self) -> None:
        """Forget the events and begin where the lists need them."""
        self._pieces = []
        self._events_start = self.events_next = self._needs
        # Lists come nearly in order of time; the slack spares a rewind for the one that does not.
        self._floor_ms = int(self._time.min()) - self._policy.open_ms

    def _trim(self) -> None:
        """Drop events that no list needs."""
        if len(self):
            while self._pieces and self._pieces[0].events.offset[-1] < self._needs:
                self._drop_first()
        else:
            kept = sum(len(piece.events) for piece in self._pieces)
            while self._pieces and kept > self._spare:
                kept -= self._drop_first()
        horizon = int(self._time.min()) if len(self) else self._newest_ms()
        self._recent = [r for r in self._recent if r[0].event_time[-1] > horizon - self._recent_ms]

    def _drop_first(self) -> int:
        dropped = self._pieces.pop(0)
        self._events_start = int(dropped.events.offset[-1]) + 1
        # No list that was read needs them any more: those that became no label were in vain.
        self._unmatched += dropped.unmatched(self._judged)
        self._judged = max(self._judged, self._events_start)
        return len(dropped.events)

    # Labels

    def _first(self, n: int) -> Shown:
        """The first n lists that were not taken; they count as taken."""
        found, left = [], n
        while left:
            part, start = self._parts[0], self._taken_of_first
            stop = min(start + left, len(part))
            found.append(sliced(part, start, stop))
            left -= stop - start
            self._taken_of_first = stop
            if stop == len(part):
                self._parts.pop(0)
                self._taken_of_first = 0
        return concat_lists(found)

    def _examples(self, lists: Shown, closed: NDArray[np.int64]) -> Examples:
        m = len(lists.item_id)
        counts = np.diff(lists.splits)
        of = np.repeat(np.arange(len(lists)), counts)
        at = of.tolist()
        return Examples(
            request_id=[lists.request_id[i] for i in at],
            user_id=[lists.user_id[i] for i in at],
            item_id=lists.item_id,
            source=[ExampleSource.SERVED.value] * m,
            surface=[lists.surface[i] for i in at],
            fingerprint=self._fingerprint,
            position=np.arange(m) - lists.splits[:-1][of],
            event_time=lists.event_time[of],
            model_version=lists.model_version[of],
            events_partition=np.full(m, self._partition, np.int64),
            events_offset=lists.events_offset[of],
            item_hash=lists.item_hash,
            users=UserFeatures(longs=lists.users.longs[of], floats=lists.users.floats[of]),
            items=ItemFeatures(longs=lists.items.longs, floats=lists.items.floats),
            labels=self._labels(lists, closed),
        )

    def _labels(self, lists: Shown, closed: NDArray[np.int64]) -> NDArray[np.int64]:
        """[m, LABELS] events on each item, each event id once."""
        bounds = (lists.events_offset, closed)
        pairs = []
        for piece, found in matches(lists, self._pieces, bounds, self._policy.window_ms):
            piece.used[found.event] = True
            pairs.append(
                (
                    found.entry,
                    piece.events.event_type[found.event],
                    piece.events.event_hash[found.event],
                )
            )
        labels = np.zeros((len(lists.item_id), LABELS), np.int64)
        if not pairs:
            return labels
        entry = np.concatenate([entry for entry, _, _ in pairs])
        kind = np.concatenate([kind for _, kind, _ in pairs])
        event = np.concatenate([event for _, _, event in pairs])
        # Pairs are in log order within an entry: of equal event ids the first counts.
        order = np.lexsort((event, entry))  # stable
        entry, kind, event = entry[order], kind[order], event[order]
        again = np.zeros(len(entry), bool)
        again[1:] = (entry[1:] == entry[:-1]) & (event[1:] == event[:-1])
        np.add.at(labels, (entry[~again], kind[~again]), 1)
        return labels

    # Late labels: a count for the dashboard, of what this process has seen

    @property
    def _recent_ms(self) -> int:
        return 2 * self._policy.open_ms

    def _newest_ms(self) -> int:
        return int(self._pieces[-1].events.event_time.max()) if self._pieces else 0

    def _count_late(self, pieces: Sequence[Piece], lists: Shown, closed: NDArray[np.int64]) -> None:
        """Labels that came after their list was closed."""
        bounds = (np.maximum(closed, lists.events_offset), np.full(len(lists), _NEVER))
        for piece, found in matches(lists, pieces, bounds, self._policy.window_ms):
            piece.used[found.event] = True
            events = piece.events
            took_ms = events.came_ms[found.event] - events.event_time[found.event]
            self._late_ms.append(np.maximum(took_ms, 0))
