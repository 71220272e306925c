"""
Skew: features as served against those that the log gives, feature by feature, and what it means.

What comes from the user's row must be the same bytes. What needs the item table must be what the
table gives as it stood shortly before the answer, or shortly after it, or between the two: partials
lag behind the rows, and windows over items are closed at the bucket, so that almost always the two
are equal and leave no room at all. Where they differ, events were on their way; a rate of two
counts may then lie outside of both, hence one spread to either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures
from features.declare import Array, Drift, FeatureSet, Level

Packed: TypeAlias = UserFeatures | ItemFeatures
Mask: TypeAlias = NDArray[np.bool_]

# Why an answer that a user got holds no features that could be compared: that is skew as well.
FAULTS: Final = {
    "another feature set": "fingerprint",
    "misplaced": "place",
    "past the log's end": "place",
    "without features": "features",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSkew:
    """How one feature as served compares with the log's, over all that were compared."""

    name: str
    level: Level
    equal: int
    within: int  # not the same bytes, but between what the item table gave before and after
    different: int
    missing: int  # served as the default, though the log gives a value
    extra: int  # served with a value, though the log gives the default
    smape: float | None  # symmetric mean absolute percentage error, 0 to 2; None: no magnitudes

    @property
    def skewed(self) -> int:
        return self.different + self.missing + self.extra


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    fingerprint: str
    since_ms: int
    users: int = 0
    answers: int = 0  # whose user features were compared
    entries: int = 0  # items of those answers that were compared
    left_out: int = 0  # answers of sampled users beyond the limit: older than those compared
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> answers or items
    features: tuple[FeatureSkew, ...] = ()
    wrong_answers: int = 0  # with a user feature that is not the log's
    leaks: int = 0  # of those: served from events at or after the recorded position
    wrong_entries: int = 0  # items with a feature out of tolerance
    named: tuple[str, ...] = ()  # some of what is wrong, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewPolicy:
    """How much is compared, what is tolerated, and what is enough. Defaults: `production`."""

    least_answers: int = 200
    most_answers: int = 2_000  # the newest of the sampled users'
    # A publisher that restarts, or a server that was cut off, serves from an old item table for a
    # while: that much is no reason to stop learning. Rows have no such excuse.
    entry_share: float = 0.01
    # Publishing takes 0.25 s, reading 0.2 s, a restart some seconds; a minute is far beyond.
    table_lag_ms: int = 60_000

    def __post_init__(self) -> None:
        if self.least_answers < 1 or self.most_answers < self.least_answers:
            raise ValueError(f"at least one answer, and no fewer at most, got {self}")


SKEW_POLICIES: Final[Mapping[str, SkewPolicy]] = {
    "production": SkewPolicy(),
    "demo": SkewPolicy(least_answers=20, table_lag_ms=5_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What was served is what the log gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skewed:
    """It is not: all reasons, each beginning with its code."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Insufficient:
    """Too little was compared to say so."""

    reasons: tuple[str, ...]


Verdict: TypeAlias = Pass | Skewed | Insufficient


def judge(report: AuditReport, policy: SkewPolicy) -> Verdict:
    """
    What a report means.

    >>> judge(AuditReport(fingerprint="f", since_ms=0), SkewPolicy())
    Insufficient(reasons=('answers: 0 compared, at least 200 asked',))
    """
    if reasons := tuple(_faults(report, policy)):
        return Skewed(reasons=reasons)
    if report.answers < policy.least_answers:
        text = f"answers: {report.answers} compared, at least {policy.least_answers} asked"
        return Insufficient(reasons=(text,))
    return Pass()


def _faults(report: AuditReport, policy: SkewPolicy) -> Iterator[str]:
    if report.wrong_answers:
        names = _worst(report, Level.USER)
        yield f"row: {report.wrong_answers} of {report.answers} answers, in {names}"
    if report.leaks:
        yield f"leak: {report.leaks} answers hold events at or after their recorded position"
    if report.wrong_entries > policy.entry_share * report.entries:
        names = _worst(report, Level.ITEM)
        yield f"item: {report.wrong_entries} of {report.entries} items out of tolerance, in {names}"
    for why, count in sorted(report.skipped.items()):
        if why in FAULTS:
            yield f"{FAULTS[why]}: {count} answers {why}"


def _worst(report: AuditReport, level: Level) -> str:
    """The three features of a level that are wrong most often."""
    wrong = sorted(
        (f for f in report.features if f.level == level and f.skewed), key=lambda f: -f.skewed
    )
    return ", ".join(f"{f.name} ({f.skewed})" for f in wrong[:3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One level's features compared, and which rows are wrong in which of them."""

    features: tuple[FeatureSkew, ...]
    wrong: Mapping[str, Mask]  # by feature, [n]

    def any(self, n: int) -> Mask:
        """[n] rows with a wrong feature."""
        found: Mask = np.logical_or.reduce([np.zeros(n, bool), *self.wrong.values()])
        return found


def compare(
    features: FeatureSet, level: Level, served: Packed, expected: Sequence[Packed]
) -> Compared:
    """
    Compare n rows of packed features with what they should be.

    Args:
        expected: one, to be met byte for byte; or two, what is between which is tolerated.
    """
    found: list[FeatureSkew] = []
    wrong: dict[str, Mask] = {}
    declared = {f.name: f for f in features.of(level)}
    for dtype, pick in (("int64", _longs), ("float32", _floats)):
        for name, part in features.slices(level, dtype).items():
            columns = [pick(one)[:, part] for one in (served, *expected)]
            judged = _judged(columns, declared[name].default)
            smape = _smape(columns[0], columns[-1], judged.right)
            found.append(
                FeatureSkew(
                    name=name,
                    level=level,
                    equal=int(judged.equal.sum()),
                    within=int((judged.right & ~judged.equal).sum()),
                    different=int((~judged.right & ~judged.missing & ~judged.extra).sum()),
                    missing=int(judged.missing.sum()),
                    extra=int(judged.extra.sum()),
                    smape=smape if declared[name].drift == Drift.NUMERIC else None,
                )
            )
            wrong[name] = ~judged.right
    order = {name: at for at, name in enumerate(declared)}
    return Compared(features=tuple(sorted(found, key=lambda f: order[f.name])), wrong=wrong)


@dataclass(frozen=True, slots=True)
class _Judged:
    equal: Mask
    right: Mask  # equal or tolerated
    missing: Mask
    extra: Mask


def _judged(columns: Sequence[Array], default: float) -> _Judged:
    served, *expected = columns
    equal = np.logical_or.reduce([_same(served, one) for one in expected])
    right = equal | _between(served, expected[0], expected[-1])
    nothing = np.asarray(default, served.dtype)
    is_default = (served == nothing).all(axis=1)
    should_be = np.logical_and.reduce([(one == nothing).all(axis=1) for one in expected])
    return _Judged(
        equal=equal,
        right=right,
        missing=~right & is_default & ~should_be,
        extra=~right & ~is_default & should_be,
    )


def _same(one: Array, other: Array) -> Mask:
    """[n] rows of equal bytes."""
    bits = f"i{one.dtype.itemsize}"
    left, right = np.ascontiguousarray(one), np.ascontiguousarray(other)
    same: Mask = (left.view(bits) == right.view(bits)).all(axis=1)
    return same


def _between(served: Array, before: Array, after: Array) -> Mask:
    """[n] rows with room between the two that what was served keeps to; ids leave no room."""
    if served.dtype != np.float32:
        return np.zeros(len(served), bool)
    low, high = np.minimum(before, after), np.maximum(before, after)
    room = high - low
    inside = (served >= low - room) & (served <= high + room)
    found: Mask = inside.all(axis=1) & (room > 0).any(axis=1)
    return found


def _smape(served: Array, expected: Array, right: Mask) -> float:
    """Over all values; those of rows that are right count as equal."""
    if not served.size:
        return 0.0
    one, other = (np.nan_to_num(c.astype(np.float64)) for c in (served, expected))
    size = np.abs(one) + np.abs(other)
    error = np.divide(2 * np.abs(one - other), size, out=np.zeros_like(size), where=size > 0)
    error[right] = 0
    return float(error.mean())


def merged(parts: Sequence[Compared]) -> tuple[FeatureSkew, ...]:
    """The same features compared in several parts, added up."""
    found = []
    for same in zip(*(part.features for part in parts), strict=True):
        counts = [(f, f.equal + f.within + f.skewed) for f in same]
        total = sum(n for _, n in counts)
        smape = sum((f.smape or 0.0) * n for f, n in counts) / total if total else 0.0
        first = same[0]
        found.append(
            FeatureSkew(
                name=first.name,
                level=first.level,
                equal=sum(f.equal for f in same),
                within=sum(f.within for f in same),
                different=sum(f.different for f in same),
                missing=sum(f.missing for f in same),
                extra=sum(f.extra for f in same),
                smape=None if first.smape is None else smape,
            )
        )
    return tuple(found)


def _longs(packed: Packed) -> Array:
    return packed.longs


def _floats(packed: Packed) -> Array:
    return packed.floats
