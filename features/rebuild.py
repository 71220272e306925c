"""
Rows rebuilt from the log: compared with the live ones byte for byte, or put in their place.

Both halves of a comparison stand at the same offset, although the live worker may go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from features.refold import RebuildParts, Refold, Tape, refolding
from features.store import Position, Snapshot
from ingest.placement import partition_of
from schemas.errors import Misconfigured

Verdict = Literal["equal", "different", "missing", "extra"]  # the fields of Compared

PAGE = 1_000  # keys compared by one read
NAMED = 20  # differing keys that a report names


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How stored values compare with those that the log gives."""

    equal: int = 0
    different: int = 0
    missing: int = 0  # not in the store
    extra: int = 0  # in the store, but not in the log

    def __add__(self, other: Compared) -> Compared:
        return Compared(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Compared)}
        )

    @property
    def ok(self) -> bool:
        return not (self.different or self.missing or self.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionReport:
    """One partition, compared up to `offset`."""

    partition: int
    offset: int
    rows: Compared
    partials: Compared
    named: tuple[str, ...] = ()  # the first keys that differ, and how


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    """All partitions that were compared."""

    partitions: tuple[PartitionReport, ...]

    @property
    def ok(self) -> bool:
        """Whether all live bytes are what the log gives."""
        return all(p.rows.ok and p.partials.ok for p in self.partitions)

    @property
    def rows(self) -> Compared:
        return sum((p.rows for p in self.partitions), Compared())

    @property
    def partials(self) -> Compared:
        return sum((p.partials for p in self.partitions), Compared())


@dataclass(frozen=True, slots=True, kw_only=True)
class UserReport:
    """One user's row, compared at `offset`."""

    user: str
    partition: int
    offset: int
    found: Verdict

    @property
    def ok(self) -> bool:
        return self.found == "equal"


def verify(parts: RebuildParts, partitions: Sequence[int] | None = None) -> RebuildReport:
    """
    Compare all rows and partials with the log.

    Raises:
        Misconfigured: the store holds no position, or the log has lost its beginning.
        BrokerUnavailable: the log did not give what it says it has.
    """
    chosen = range(parts.log.partitions(parts.topic)) if partitions is None else partitions
    return RebuildReport(
        partitions=tuple(verify_partition(parts, partition) for partition in chosen)
    )


def rebuild_partition(parts: RebuildParts, partition: int) -> PartitionReport:
    """
    Replace what differs in one partition, or fold it afresh where nothing of this log is stored.

    A running worker of the partition is fenced: it ends, and resumes at its restart. Returns what
    was found before.
    """
    start, end = parts.start(partition)
    stored = parts.store.positions([partition])[partition]
    if stored is not None and not of_this_log(stored, start, end):
        parts.store.clear(parts.store.claim(partition, None), position=True)
        stored = None
    if stored is None:
        return _folded_afresh(parts, partition, start, end)
    lease = parts.store.claim(partition, None)
    with refolding(parts, partition) as refold:
        refold.advance_to(lease.position.next_offset)
        pages = list(_pages(parts, refold))
        for page in pages:
            update = refold.update(page.users, page.items, lease.position)
            lease = parts.store.write(lease, update)
        return _report(refold, pages)


def verify_user(parts: RebuildParts, user: str) -> UserReport:
    """Compare one user's row with what the log gives, changing nothing."""
    partition = home_of(parts, user)
    with refolding(parts, partition) as refold:
        refold.advance_to(_stored(parts, partition).next_offset)
        snapshot = parts.store.snapshots({partition: [user]})[partition]
        refold.advance_to(_known(snapshot.position, partition).next_offset)
        return _user_report(refold, user, snapshot.rows[0])


def rebuild_user(parts: RebuildParts, user: str) -> UserReport:
    """Replace one user's row by what the log gives, if it is another. Returns what was found."""
    partition = home_of(parts, user)
    with refolding(parts, partition) as refold:
        # Most of the way before the claim: the worker stands still for the rest only.
        refold.advance_to(_stored(parts, partition).next_offset)
        lease = parts.store.claim(partition, None)
        refold.advance_to(lease.position.next_offset)
        report = _user_report(refold, user, parts.store.read(lease, [user], []).rows[0])
        if not report.ok:
            parts.store.write(lease, refold.update([user], [], lease.position))
        return report


def of_this_log(stored: Position, start: Position, end: int) -> bool:
    """Whether a stored position is an offset of the log that spans `start` to `end`."""
    same = (stored.cluster_id, stored.topic_id) == (start.cluster_id, start.topic_id)
    return same and start.next_offset <= stored.next_offset <= end


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """Some keys compared, and those of them that are wrong."""

    rows: Compared = Compared()
    partials: Compared = Compared()
    users: list[str]
    items: list[str]
    named: list[str]


def verify_partition(parts: RebuildParts, partition: int) -> PartitionReport:
    """Compare one partition, changing nothing."""
    with refolding(parts, partition) as refold:
        refold.advance_to(_stored(parts, partition).next_offset)
        return _report(refold, list(_pages(parts, refold)))


def _report(refold: Refold, pages: Sequence[_Page]) -> PartitionReport:
    return PartitionReport(
        partition=refold.partition,
        offset=refold.offset,
        rows=sum((page.rows for page in pages), Compared()),
        partials=sum((page.partials for page in pages), Compared()),
        named=tuple(name for page in pages for name in page.named)[:NAMED],
    )


def _user_report(refold: Refold, user: str, found: bytes | None) -> UserReport:
    return UserReport(
        user=user,
        partition=refold.partition,
        offset=refold.offset,
        found=_verdict(refold, found, refold.rows([user])[0]),
    )


def home_of(parts: RebuildParts, user: str) -> int:
    """The partition of a user's events, and so of her row."""
    return partition_of(user.encode(), parts.log.partitions(parts.topic))


def _pages(parts: RebuildParts, refold: Refold) -> Iterator[_Page]:
    """Page by page, the refold brought to where the live half of each page stands."""
    partition = refold.partition

    def live_rows(users: Sequence[str]) -> Snapshot:
        return parts.store.snapshots({partition: users})[partition]

    def live_partials(items: Sequence[str]) -> Snapshot:
        return parts.store.partials(partition, items)

    live, known = parts.store.keys(partition), refold.known()
    for users in _cut(live.users | known.users):
        compared, wrong, named = _compare(refold, users, live_rows, refold.rows)
        yield _Page(rows=compared, users=wrong, items=[], named=named)
    for items in _cut(live.items | known.items):
        compared, wrong, named = _compare(refold, items, live_partials, refold.partials)
        yield _Page(partials=compared, users=[], items=wrong, named=named)


def _compare(
    refold: Refold,
    keys: list[str],
    read: Callable[[Sequence[str]], Snapshot],
    expect: Callable[[Sequence[str]], Sequence[bytes | None]],
) -> tuple[Compared, list[str], list[str]]:
    snapshot = read(keys)
    refold.advance_to(_known(snapshot.position, refold.partition).next_offset)
    tally = {"equal": 0, "different": 0, "missing": 0, "extra": 0}
    wrong, named = [], []
    for key, found, expected in zip(keys, snapshot.rows, expect(keys), strict=True):
        verdict = _verdict(refold, found, expected)
        tally[verdict] += 1
        if verdict != "equal":
            wrong.append(key)
            named.append(f"{key}: {verdict}")
    return Compared(**tally), wrong, named


def _verdict(refold: Refold, found: bytes | None, expected: bytes | None) -> Verdict:
    if found == expected or (refold.says_nothing(found) and refold.says_nothing(expected)):
        return "equal"
    if refold.says_nothing(found):
        return "missing"
    return "extra" if expected is None else "different"


def _folded_afresh(
    parts: RebuildParts, partition: int, start: Position, end: int
) -> PartitionReport:
    """Fold the log straight into the store, as a first start does, up to its present end."""
    lease = parts.store.claim(partition, start)
    left_over = parts.store.clear(lease)
    worker = parts.worker(parts.store, parts.open_outlets())
    worker.take(lease)
    tape = Tape(parts, partition, start.next_offset)
    try:
        while worker.leases[partition].position.next_offset < end:
            worker.process(tape.before(end))
            parts.tell(worker.leases[partition].position.next_offset)
    finally:
        tape.close()
    keys = parts.store.keys(partition)
    return PartitionReport(
        partition=partition,
        offset=end,
        rows=Compared(missing=len(keys.users), extra=left_over),
        partials=Compared(missing=len(keys.items)),
    )


def _cut(keys: frozenset[str]) -> Iterator[list[str]]:
    ordered = sorted(keys)
    for at in range(0, len(ordered), PAGE):
        yield ordered[at : at + PAGE]


def _stored(parts: RebuildParts, partition: int) -> Position:
    return _known(parts.store.positions([partition])[partition], partition)


def _known(position: Position | None, partition: int) -> Position:
    if position is None:
        raise Misconfigured(
            f"the store holds no position of partition {partition}: there is nothing to compare; "
            f"run `millstream features rebuild --partition {partition}`"
        )
    return position
