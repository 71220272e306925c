"""
The feature worker: micro-batches of partitions of user-events become rows and item partials.

Used by the Beam pipeline, by rebuilds and by tests; which of these it serves it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from features import rows
from features.counts import Counts
from features.declare import FeatureSet
from features.event_columns import EventColumns, Folded
from features.fit import EventReader, Fit, fit
from features.fold import fold
from features.gathered import Gathered, Touched, gather, refusals, touched
from features.items import Partials, decode_partials, encode_partials, fold_partials
from features.misplaced import KeyGroups, arrivals, misplaced, sent_on
from features.outlets import Outlets
from features.store import Lease, RowWriter, Update
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


class _Sorted(NamedTuple):
    """A batch's records that belong here, and what became of the others."""

    here: NDArray[np.bool_]  # [n]
    origins: tuple[tuple[int, int], ...]
    counts: Counts


class _Folding(NamedTuple):
    """What is to be written of a batch, and what became of its fit records."""

    update: Update
    counts: Counts


class FeatureWorker:
    """
    Folds the partitions whose leases it was given. Not thread-safe.

    Batches are folded in this order; an error before the last step changes nothing:

    1. sort: misplaced records are sent on, repeated copies left out
    2. decode and judge: bad records are refused, their neighbours go on
    3. read the users' rows and the items' partials as of the lease's position
    4. fold
    5. flush what was sent on or refused: it must be on the log before the position moves
    6. write rows, partials and the next position in one transaction a partition
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

    def process(self, *batches: RecordBatch) -> Counts:
        """
        Fold batches of different partitions in one pass; an empty one only moves its position.

        The partitions are written one after the other. After an error `leases` says which were.

        Raises:
            PositionMoved: another worker wrote, or a batch does not begin at our position.
            Retryable: a partition was not written; the same batch may be tried again.
            Misconfigured: a stored row is corrupt, or too many records were refused.
        """
        leases = [self._lease(batch) for batch in batches]
        gathered = gather(batches)
        sorts = [
            self._sorted(batch, groups, lease)
            for batch, groups, lease in zip(batches, gathered.parts, leases, strict=True)
        ]
        here = np.concatenate([one.here for one in sorts])
        found = fit(gathered, here, self._reader, self._rules.features.row.future_ms)
        for at, why in found.refused:
            self._outlets.dead(*gathered.place(at), why)
        updates = self._folded(gathered, found, leases)
        self._outlets.flush()
        refused = refusals(gathered, found).tolist()
        whole = Counts()
        for lease, update, one, dead in zip(leases, updates, sorts, refused, strict=True):
            counts = update.counts + one.counts + Counts(dead=dead)
            self._write(lease, replace(update.update, origins=one.origins), counts)
            whole += counts
        return whole

    def _sorted(self, batch: RecordBatch, groups: KeyGroups, lease: Lease) -> _Sorted:
        """Send on what belongs elsewhere, leave out repeated copies."""
        arrived = arrivals(batch, lease.position.origins)
        elsewhere = misplaced(batch, groups, self._rules.partitions)
        here = ~elsewhere
        here[arrived.repeated] = False
        dead = self._send_on(batch, np.flatnonzero(elsewhere))
        counts = Counts(
            records=len(batch),
            duplicates=len(arrived.repeated),
            dead=dead,
            misplaced=int(elsewhere.sum()) - dead,
        )
        return _Sorted(here=here, origins=arrived.origins, counts=counts)

    def _write(self, lease: Lease, update: Update, counts: Counts) -> None:
        total = Counts.of(lease.position.counts) + counts
        self.take(self._store.write(lease, replace(update, counts=total.named())))

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

    def _folded(self, gathered: Gathered, found: Fit, leases: Sequence[Lease]) -> list[_Folding]:
        """Read what these records change, fold, encode: what to write of each batch."""
        policy, fingerprint = self._rules.features.row, self._rules.features.fingerprint
        order = in_log_order(found)
        items = distinct_items(found.frame["item_id"], order)
        of = touched(gathered, order, items)
        stored, partials = self._decoded(of, leases)
        events = event_columns(gathered.origin, found, order, items, of.row)
        folded = fold(stored, events, policy)
        counted = folded.accepted & (of.partial >= 0)
        grown = fold_partials(
            partials,
            of.partial[counted],
            events.event_type[counted],
            events.event_time_ms[counted],
            policy,
        )
        changed = np.zeros(len(grown), np.bool_)
        changed[of.partial[counted]] = True
        encoded = rows.encode(folded.rows, fingerprint)
        encoded_partials = encode_partials(grown, fingerprint)
        updates = []
        for at, batch in enumerate(gathered.batches):
            mine = slice(of.user_starts[at], of.user_starts[at + 1])
            its = slice(of.item_starts[at], of.item_starts[at + 1])
            parts = zip(of.items[at], encoded_partials[its], changed[its].tolist(), strict=True)
            update = Update(
                rows=dict(zip(of.users[at], encoded[mine], strict=True)),
                partials={item: value for item, value, new in parts if new},
                next_offset=batch.next_offset,
            )
            updates.append(
                _Folding(
                    update=update,
                    counts=_counts(events, folded, slice(of.events[at], of.events[at + 1])),
                )
            )
        return updates

    def _decoded(self, of: Touched, leases: Sequence[Lease]) -> tuple[rows.Rows, Partials]:
        """What stands in the store of these users and items, batch after batch."""
        fingerprint = self._rules.features.fingerprint
        stored = [
            self._store.read(lease, users, items)
            for lease, users, items in zip(leases, of.users, of.items, strict=True)
        ]
        found = rows.decode(list(chain.from_iterable(v.rows for v in stored)), fingerprint)
        partials = decode_partials(
            list(chain.from_iterable(v.partials for v in stored)), fingerprint
        )
        if found.corrupt:
            user = list(chain.from_iterable(of.users))[found.corrupt[0]]
            raise Misconfigured(_corrupt_row(user, len(found.corrupt)))
        if partials.corrupt:
            at = partials.corrupt[0]
            lease = leases[int(np.searchsorted(of.item_starts, at, side="right")) - 1]
            item = list(chain.from_iterable(of.items))[at]
            raise Misconfigured(_corrupt_partial(item, lease.partition))
        return found.rows, partials.partials


def _counts(events: EventColumns, folded: Folded, part: slice) -> Counts:
    """The fates of some of the events."""
    accepted, duplicate, late = folded.accepted[part], folded.duplicate[part], folded.late[part]
    known = [int(np.count_nonzero(mask)) for mask in (accepted, duplicate, late)]
    types = np.bincount(events.event_type[part][accepted], minlength=len(EventType))
    return Counts(
        folded=known[0],
        duplicates=known[1],
        late=known[2],
        erased=len(accepted) - sum(known),
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
