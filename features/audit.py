"""
The skew audit: what users were served against what the log gives.

For each answer of some users the log is folded again up to the position that the answer recorded,
and assembled at the event time that it recorded, by the code that serves. The item table is made
twice: of the partials as they stood some time before the answer, and some time after it
(`features.skew` says what may lie between).

A partition is folded once, in memory, with a stop wherever an answer needs to look: an audit costs
one fold of the log and the memory of one partition's rows, as `features rebuild --verify` does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features import rows as row_format
from features.assemble import ItemFeatures, UserFeatures, assemble_items, assemble_users
from features.audit_answers import AnswerReader, Answers, ReadAnswers, Standings, UserSample
from features.audit_catalogue import Catalogue
from features.audit_moments import explained
from features.declare import FeatureSet, ItemContext, Level, UserContext
from features.items import ItemTable
from features.ragged import owners, spans
from features.refold import RebuildParts, refolding
from features.skew import AuditReport, Compared, SkewPolicy, compare, merged
from ingest.log import Log, Source
from ingest.metrics import Metrics
from ingest.topics import Topics
from schemas.events import ItemFeatures as PartialRecord
from schemas.registry import Registry

# Answers whose item tables are made together: they share the times before and after.
_TOGETHER: Final = 64
_NAMED: Final = 20  # wrong answers, and wrong items, that are looked into and named

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditParts:
    """What an audit works with. The store of `refold` is not touched."""

    log: Log
    source: Source
    registry: Registry
    topics: Topics
    features: FeatureSet
    refold: RebuildParts
    metrics: Metrics
    tell: Callable[[str], None] = lambda text: None


def audit(
    parts: AuditParts, sample: UserSample, policy: SkewPolicy, *, since_ms: int = 0
) -> AuditReport:
    """
    Compare the answers of sampled users with the log.

    Raises:
        Misconfigured: the log has lost its beginning, or a topic is not there.
        BrokerUnavailable: the log did not give what it says it has.
    """
    parts.tell("reading answers")
    reader = AnswerReader(parts.registry, parts.features, sample)
    read = reader.read(
        parts.log, parts.source, parts.topics, since_ms=since_ms, most=policy.most_answers
    )
    report = AuditReport(
        fingerprint=parts.features.fingerprint,
        since_ms=since_ms,
        left_out=read.left_out,
        skipped=dict(read.skipped),
    )
    if read.answers is not None:
        report = _compared(parts, policy, read, read.answers, report)
    _measure(parts.metrics, report)
    return report


def _compared(
    parts: AuditParts,
    policy: SkewPolicy,
    read: ReadAnswers,
    answers: Answers,
    report: AuditReport,
) -> AuditReport:
    """The report with what the answers' features turned out to be."""
    bounds = parts.log.bounds(parts.topics.user_events)
    ends = [bounds[p][1] for p in sorted(bounds)]
    skipped = Counter(read.skipped)
    on_log = answers.lists.events_offset <= np.array(ends)[answers.partition]
    skipped["past the log's end"] = int((~on_log).sum())
    answers = answers.take(on_log)
    groups = list(_grouped(answers, read.standings, ends, policy.table_lag_ms))
    was = _Past(parts, answers, groups)
    for partition in range(len(ends)):
        parts.tell(f"folding partition {partition} of {len(ends)} again")
        was.fold(partition)
    context = was.context()
    parts.tell("comparing")
    # Past its lifetime a row may be gone from the store, or not yet; the fold keeps it.
    age_ms = context.now_ms - context.rows.last_seen_ms
    alive = (context.rows.last_seen_ms == 0) | (age_ms <= parts.features.row.lifetime_ms)
    skipped["row past its lifetime"] = int((~alive).sum())
    index = np.flatnonzero(alive)
    users = _compare_users(parts.features, answers, context, index)
    wrong = users.any(len(index))
    items = _compare_items(parts, was, context, alive)
    skipped["items changed since"] = items.changed
    leaks, named = explained(
        parts.refold, answers, index[wrong][:_NAMED], _names(users, np.flatnonzero(wrong))
    )
    return replace(
        report,
        users=len(np.unique(answers.lists.user_hash[index])),
        answers=len(index),
        entries=items.entries,
        skipped=dict(+skipped),  # `asdict` would count a Counter's pairs
        features=(*users.features, *merged(items.parts)),
        wrong_answers=int(wrong.sum()),
        leaks=leaks,
        wrong_entries=items.wrong,
        named=(*named, *items.named[:_NAMED]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Answers near each other in time, and the positions between which their item table stood."""

    answers: Index
    items: tuple[str, ...]
    earliest_ms: int
    before: list[int]  # by partition
    after: list[int]


def _grouped(
    answers: Answers, standings: Standings, ends: list[int], lag_ms: int
) -> Iterator[_Group]:
    """The answers in order of time, some at a time."""
    order = np.argsort(answers.answered_ms, kind="stable")
    times = answers.answered_ms[order]
    splits, start = answers.lists.splits, 0
    while start < len(order):
        near = int(np.searchsorted(times, times[start] + lag_ms, "right"))
        stop = min(start + _TOGETHER, near)
        index = order[start:stop]
        entries = spans(splits[index], np.diff(splits)[index])
        before = standings.at_least(int(times[start]) - lag_ms)
        after = standings.at_most(int(times[stop - 1]) + lag_ms, ends)
        yield _Group(
            answers=index,
            items=tuple(sorted({answers.lists.item_id[i] for i in entries.tolist()})),
            earliest_ms=int(times[start]) - lag_ms,
            before=before,
            after=[max(pair) for pair in zip(before, after, strict=True)],
        )
        start = stop


@dataclass(slots=True)
class _Stop:
    """What is read of a partition at one offset."""

    answers: list[int] = field(default_factory=list)
    tables: list[tuple[int, int]] = field(default_factory=list)  # group; 0 before, 1 after


class _Past:
    """Rows and item tables as they were."""

    def __init__(self, parts: AuditParts, answers: Answers, groups: list[_Group]) -> None:
        self.answers, self.groups = answers, groups
        self._parts = parts
        self._rows: list[bytes | None] = [None] * len(answers)
        self._partials: dict[tuple[int, int], list[PartialRecord]] = defaultdict(list)

    def fold(self, partition: int) -> None:
        """Fold one partition, reading on the way what answers and groups need of it."""
        stops: dict[int, _Stop] = defaultdict(_Stop)
        offsets = self.answers.lists.events_offset
        for i in np.flatnonzero(self.answers.partition == partition).tolist():
            stops[int(offsets[i])].answers.append(i)
        for g, group in enumerate(self.groups):
            stops[group.before[partition]].tables.append((g, 0))
            stops[group.after[partition]].tables.append((g, 1))
        with refolding(self._parts.refold, partition) as refold:
            for offset, stop in sorted(stops.items()):
                refold.advance_to(offset)
                users = [self.answers.lists.user_id[i] for i in stop.answers]
                for i, row in zip(stop.answers, refold.rows(users), strict=True):
                    self._rows[i] = row
                for g, side in stop.tables:
                    items = self.groups[g].items
                    self._partials[g, side] += self._records(
                        partition, zip(items, refold.partials(items), strict=True)
                    )

    def context(self) -> UserContext:
        """Every answer's request, with its user's row as it was."""
        rows = row_format.decode(self._rows, self._parts.features.fingerprint).rows
        return _user_context(self.answers, rows, np.arange(len(self.answers)))

    def tables(self, catalogue: Catalogue) -> Iterator[tuple[_Group, tuple[ItemTable, ItemTable]]]:
        """Each group with its item table before and after. The tables change with the next one."""
        fingerprint = self._parts.features.fingerprint
        tables = ItemTable(fingerprint), ItemTable(fingerprint)
        for table in tables:
            table.put_items(catalogue.items())
        for g, group in enumerate(self.groups):
            for side, table in enumerate(tables):
                table.put_partials(self._partials.pop((g, side), []))
            yield group, tables

    def _records(
        self, partition: int, partials: Iterator[tuple[str, bytes | None]]
    ) -> list[PartialRecord]:
        return [
            PartialRecord(
                item_id=item,
                partition=partition,
                fingerprint=self._parts.features.fingerprint,
                events_offset=0,
                partial=partial,
            )
            for item, partial in partials
            if partial is not None
        ]


def _user_context(answers: Answers, rows: row_format.Rows, index: Index) -> UserContext:
    return UserContext(
        rows=row_format.take(rows, index),
        now_ms=answers.lists.event_time[index],
        surface=answers.surface[index],
        device=answers.device[index],
        country=answers.country[index],
    )


def _compare_users(
    features: FeatureSet, answers: Answers, context: UserContext, index: Index
) -> Compared:
    served = UserFeatures(
        longs=answers.lists.users.longs[index], floats=answers.lists.users.floats[index]
    )
    expected = assemble_users(features, _user_context(answers, context.rows, index))
    return compare(features, Level.USER, served, [expected])


@dataclass(slots=True)
class _ComparedItems:
    """The items of all groups, as far as they were compared."""

    parts: list[Compared] = field(default_factory=list)
    entries: int = 0
    changed: int = 0  # not compared: the catalogue has said something else since
    wrong: int = 0
    named: list[str] = field(default_factory=list)


def _compare_items(
    parts: AuditParts, was: _Past, context: UserContext, alive: NDArray[np.bool_]
) -> _ComparedItems:
    lists = was.answers.lists
    needed = np.concatenate([lists.item_hash, context.rows.history_item])
    catalogue = Catalogue(np.unique(needed))
    catalogue.read(parts.log, parts.source, parts.topics, parts.registry)
    settled_ms = _settled_ms(catalogue, was.answers, context)
    found = _ComparedItems()
    for group, tables in was.tables(catalogue):
        users = _user_context(was.answers, context.rows, group.answers)
        counts = np.diff(lists.splits)[group.answers]
        entry = spans(lists.splits[group.answers], counts)
        request = np.repeat(np.arange(len(group.answers)), counts)
        same = settled_ms[entry] <= group.earliest_ms
        found.changed += int((~same).sum())
        keep = same & alive[group.answers][request]
        entry, request = entry[keep], request[keep]
        expected = [
            _assembled(parts.features, users, request, lists.item_hash[entry], table)
            for table in tables
        ]
        served = ItemFeatures(longs=lists.items.longs[entry], floats=lists.items.floats[entry])
        compared = compare(parts.features, Level.ITEM, served, expected)
        wrong = np.flatnonzero(compared.any(len(entry)))
        found.parts.append(compared)
        found.entries += len(entry)
        found.wrong += len(wrong)
        for at, names in zip(wrong[:_NAMED].tolist(), _names(compared, wrong), strict=False):
            request_id = lists.request_id[group.answers[request[at]]]
            found.named.append(f"{request_id}, item {lists.item_id[entry[at]]}: {names}")
    return found


def _assembled(
    features: FeatureSet,
    users: UserContext,
    request: Index,
    hashes: NDArray[np.uint64],
    table: ItemTable,
) -> ItemFeatures:
    return assemble_items(
        features,
        ItemContext(
            users=users, request=request, hashes=hashes, items=table, index=table.index(hashes)
        ),
    )


def _settled_ms(catalogue: Catalogue, answers: Answers, context: UserContext) -> Index:
    """[m] since when the catalogue stands as it is for an entry: its item, its user's items."""
    rows = context.rows
    history_ms = np.zeros(len(answers), np.int64)
    np.maximum.at(history_ms, owners(rows.history_splits), catalogue.settled_ms(rows.history_item))
    of = np.repeat(np.arange(len(answers)), np.diff(answers.lists.splits))
    return np.maximum(catalogue.settled_ms(answers.lists.item_hash), history_ms[of])


def _names(compared: Compared, rows: Index) -> list[str]:
    """For some of these rows, which features are wrong."""
    return [
        ", ".join(name for name, wrong in compared.wrong.items() if wrong[row])
        for row in rows[:_NAMED].tolist()
    ]


def _measure(metrics: Metrics, report: AuditReport) -> None:
    metrics.count("audit.answers", report.answers)
    metrics.count("audit.wrong_answers", report.wrong_answers)
    metrics.count("audit.items", report.entries)
    metrics.count("audit.wrong_items", report.wrong_entries)
    for why, count in report.skipped.items():
        metrics.count("audit.skipped", count, reason=why)
    for one in report.features:
        for outcome in ("equal", "within", "different", "missing", "extra"):
            metrics.count("audit.values", getattr(one, outcome), feature=one.name, outcome=outcome)
        if one.smape is not None:
            metrics.gauge("audit.smape", one.smape, feature=one.name)
