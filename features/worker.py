"""
The feature worker: one micro-batch of one partition of user-events becomes rows and item partials.

Used by the Beam pipeline, by rebuilds and by tests; which of these it serves it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from features import rows
from features.counts import Counts
from features.declare import FeatureSet
from features.event_columns import EventColumns, Folded
from features.fit import EventReader, Fit, fit
from features.fold import fold
from features.items import Partials, decode_partials, encode_partials, fold_partials
from features.misplaced import KeyGroups, arrivals, grouped, misplaced, sent_on
from features.outlets import Outlets
from features.store import Lease, RowWriter, Update, Values
from features.to_columns import distinct_items, event_columns, in_log_order
from ingest.log import RecordBatch
from schemas.errors import Misconfigured, PositionMoved, Rejected
from schemas.events import EventType

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRules:
    """What a worker folds by."""

    features: FeatureSet
    partitions: int  # of user-events


class FeatureWorker:
    """
    Folds the partitions whose leases it was given. Not thread-safe.

    A batch is folded in this order; an error before the last step changes nothing:

    1. sort: misplaced records are sent on, repeated copies left out
    2. decode and judge: bad records are refused, their neighbours go on
    3. read the users' rows and the items' partials as of the lease's position
    4. fold
    5. flush what was sent on or refused: it must be on the log before the position moves
    6. write rows, partials and the next position in one transaction
    """

    def __init__(
        self,
        store: RowWriter,
        reader: EventReader,
        outlets: Outlets,
        rules: FoldRules,
    ) -> None:
        self.leases: dict[int, Lease] = {}
        self._store = store
        self._reader = reader
        self._outlets = outlets
        self._rules = rules
        self._warned = False

    def take(self, lease: Lease) -> None:
        """Own a partition from now on."""
        self.leases[lease.partition] = lease

    def process(self, batch: RecordBatch) -> Counts:
        """
        Fold one batch; an empty one only moves the position.

        Raises:
            PositionMoved: another worker wrote, or the batch does not begin at our position.
            Retryable: nothing was written; the same batch may be tried again.
            Misconfigured: a stored row is corrupt, or too many records were refused.
        """
        lease = self._lease(batch)
        groups = grouped(batch.keys)
        arrived = arrivals(batch, lease.position.origins)
        elsewhere = misplaced(batch, groups, self._rules.partitions)
        here = ~elsewhere
        here[arrived.repeated] = False
        dead = self._send_on(batch, np.flatnonzero(elsewhere))
        found = fit(batch, groups, here, self._reader, self._rules.features.row.future_ms)
        for at, why in found.refused:
            self._outlets.dead(batch, at, why)
        update, counts = self._folded(batch, groups, found, lease)
        counts += Counts(
            records=len(batch),
            duplicates=len(arrived.repeated),
            dead=dead + len(found.refused),
            misplaced=int(elsewhere.sum()) - dead,
        )
        self._outlets.flush()
        total = Counts.of(lease.position.counts) + counts
        update = replace(update, origins=arrived.origins, counts=total.named())
        self.take(self._store.write(lease, update))
        return counts

    def _lease(self, batch: RecordBatch) -> Lease:
        lease = self.leases[batch.partition]
        if lease.position.next_offset != batch.start_offset:
            raise PositionMoved(
                f"partition {batch.partition} stands at {lease.position.next_offset}, "
                f"the batch begins at {batch.start_offset}"
            )
        return lease

    def _send_on(self, batch: RecordBatch, places: NDArray[np.int64]) -> int:
        """Produce misplaced records again; the number of those that grew too large by it."""
        dead = 0
        for at in places.tolist():
            try:
                self._outlets.send_on(sent_on(batch, at))
            except Rejected as rejected:
                self._outlets.dead(batch, at, rejected)
                dead += 1
        if len(places) and not self._warned:
            self._warned = True
            log.warning(
                "features.misplaced",
                topic=batch.topic,
                partition=batch.partition,
                offset=int(batch.offsets[places[0]]),
                events=len(places),
                remedy="a producer of this topic does not place keys as Kafka does, so its events "
                "are sent on; set partitioner=murmur2_random in its librdkafka configuration",
            )
        return dead

    def _folded(
        self, batch: RecordBatch, groups: KeyGroups, found: Fit, lease: Lease
    ) -> tuple[Update, Counts]:
        """Read what these records change, fold, encode. Nothing is written."""
        order = in_log_order(found)
        code = groups.code[order.places]
        touched, row = _distinct(code, len(groups.keys))
        users = [groups.keys[at].decode() for at in touched.tolist()]
        items = distinct_items(found.frame["item_id"], order)
        stored = self._store.read(lease, users, items.ids)
        decoded, partials = self._decoded(stored, users, items.ids, batch.partition)
        events = event_columns(batch, found, order, items, row)
        folded = fold(decoded, events, self._rules.features.row)
        counted = folded.accepted & (items.code >= 0)
        grown = fold_partials(
            partials,
            items.code[counted],
            events.event_type[counted],
            events.event_time_ms[counted],
            self._rules.features.row,
        )
        fingerprint = self._rules.features.fingerprint
        encoded = encode_partials(grown, fingerprint)
        changed, _ = _distinct(items.code[counted], len(items.ids))
        update = Update(
            rows=dict(zip(users, rows.encode(folded.rows, fingerprint), strict=True)),
            partials={items.ids[at]: encoded[at] for at in changed.tolist()},
            next_offset=batch.next_offset,
        )
        return update, _counts(events, folded)

    def _decoded(
        self, stored: Values, users: Sequence[str], items: Sequence[str], partition: int
    ) -> tuple[rows.Rows, Partials]:
        fingerprint = self._rules.features.fingerprint
        found = rows.decode(stored.rows, fingerprint)
        partials = decode_partials(stored.partials, fingerprint)
        if found.corrupt:
            raise Misconfigured(_corrupt_row(users[found.corrupt[0]], len(found.corrupt)))
        if partials.corrupt:
            raise Misconfigured(_corrupt_partial(items[partials.corrupt[0]], partition))
        return found.rows, partials.partials


def _distinct(code: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The codes below n that occur, ascending, and the place of each code among them: no sort."""
    occurs = np.zeros(n, np.bool_)
    occurs[code] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[code]


def _counts(events: EventColumns, folded: Folded) -> Counts:
    sums = folded.counts
    types = np.bincount(events.event_type[folded.accepted], minlength=len(EventType))
    return Counts(
        folded=sums.accepted,
        duplicates=sums.duplicate,
        late=sums.late,
        erased=sums.erased,
        types=tuple(types.tolist()),
    )


def _corrupt_row(user: str, count: int) -> str:
    others = f" (and of {count - 1} more)" if count > 1 else ""
    return (
        f"the stored row of user {user!r}{others} is corrupt or of another feature set; "
        f"run `millstream features rebuild --user {user}`"
    )


def _corrupt_partial(item: str, partition: int) -> str:
    return (
        f"the stored partial of item {item!r} is corrupt or of another feature set; "
        f"run `millstream features rebuild --partition {partition}`"
    )
