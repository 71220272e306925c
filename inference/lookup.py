"""The users' rows, read together with the position that they stand at; soft when there is no store.

A request with `after_offset` waits here until the rows have passed that event, within its deadline
and a cap: it holds up its whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from features import rows as row_format
from features.rows import Rows
from features.store import RowReader
from inference.requests import Asked
from ingest.clock import Clock
from ingest.placement import partitions_of
from schemas.errors import StoreUnavailable

log = structlog.get_logger(__name__)

NO_STORE: Final = "no-store"
CORRUPT_ROW: Final = "corrupt-row"
# After a failed read the store is left alone for this long: answers must not wait for its time-out.
STORE_PAUSE_S: Final = 1.0
POLL_S: Final = 0.001  # a fold's batch takes a few ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows of n requests; an unknown user has an empty row."""

    rows: Rows
    partitions: NDArray[np.int32]  # [n] of user-events
    offsets: NDArray[np.int64]  # [n] next offset that the row stands at; -1: not known
    stale: NDArray[np.bool_]  # [n] asked for a later event than the row holds
    reasons: tuple[str, ...]  # [n] why defaults had to be taken; empty: the row is right


class RowLookup:
    """Reads rows for batches of requests. One thread at a time."""

    def __init__(
        self,
        reader: RowReader,
        *,
        partitions: int,
        fingerprint: str,
        clock: Clock,
        after_offset_cap_s: float = 0.050,
    ) -> None:
        self._reader = reader
        self._partitions = partitions
        self._fingerprint = fingerprint
        self._clock = clock
        self._cap_s = after_offset_cap_s
        self._rest_until_s = float("-inf")

    def read(self, asked: Sequence[Asked]) -> Found:
        """Rows of the requests' users, in their order. Never raises for a missing store."""
        n = len(asked)
        users = [one.request.user_id for one in asked]
        places = partitions_of([user.encode() for user in users], self._partitions)
        values: list[bytes | None] = [None] * n
        offsets = np.full(n, -1, np.int64)
        reason = NO_STORE
        if self._clock.monotonic_s() >= self._rest_until_s:
            try:
                self._wait(asked, places)
                self._fill(users, places, values, offsets)
                reason = ""
            except StoreUnavailable as error:
                log.warning("serve.no_store", error=str(error))
                self._rest_until_s = self._clock.monotonic_s() + STORE_PAUSE_S
        decoded = row_format.decode(values, self._fingerprint)
        reasons = [reason] * n
        for at in decoded.corrupt:
            reasons[at] = CORRUPT_ROW
        return Found(
            rows=decoded.rows,
            partitions=places,
            offsets=offsets,
            stale=_stale(asked, places, offsets),
            reasons=tuple(reasons),
        )

    def _fill(
        self,
        users: Sequence[str],
        places: NDArray[np.int32],
        values: list[bytes | None],
        offsets: NDArray[np.int64],
    ) -> None:
        """One read for all partitions of the batch."""
        index = {int(p): np.flatnonzero(places == p).tolist() for p in np.unique(places)}
        found = self._reader.snapshots({p: [users[i] for i in at] for p, at in index.items()})
        for partition, at in index.items():
            snapshot = found[partition]
            if snapshot.position is not None:
                offsets[at] = snapshot.position.next_offset
            for i, row in zip(at, snapshot.rows, strict=True):
                values[i] = row

    def _wait(self, asked: Sequence[Asked], places: NDArray[np.int32]) -> None:
        """Until every event that is asked for is folded, or it would take too long."""
        wanted = dict(_awaited(asked, places))
        if not wanted:
            return
        end_s = self._clock.monotonic_s() + min(self._cap_s, self._patience_s(asked))
        while True:
            positions = self._reader.positions(sorted(wanted))
            wanted = {
                partition: offset
                for partition, offset in wanted.items()
                if (at := positions[partition]) is None or at.next_offset <= offset
            }
            if not wanted or self._clock.monotonic_s() >= end_s:
                return
            self._clock.sleep(POLL_S)

    def _patience_s(self, asked: Sequence[Asked]) -> float:
        """Until the first deadline of the batch."""
        now_ms = self._clock.now_ms()
        left = [
            one.timestamp_ms + one.request.deadline_ms - now_ms
            for one in asked
            if one.request.deadline_ms is not None
        ]
        return max(0.0, min(left, default=60_000) / 1000)


def _awaited(asked: Sequence[Asked], places: NDArray[np.int32]) -> Iterable[tuple[int, int]]:
    """(partition, offset) of events that can be waited for; of a partition, the last one last."""
    events = (one.request.after_offset for one in asked)
    return sorted(
        (event.partition, event.offset)
        for event, place in zip(events, places, strict=True)
        if event is not None and event.partition == place
    )


def _stale(
    asked: Sequence[Asked], places: NDArray[np.int32], offsets: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """An event in another partition than the user's can never be seen to be folded."""
    return np.array(
        [
            (event := one.request.after_offset) is not None
            and (event.partition != place or offset <= event.offset)
            for one, place, offset in zip(asked, places, offsets, strict=True)
        ],
        bool,
    )
