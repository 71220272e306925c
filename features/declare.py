"""
How a feature is declared: once, with everything that anyone needs to know of it.

A `Feature` gives its place in the model's input, its TFRecord feature and parse spec, its default,
its drift statistic and its documentation; a `FeatureSet` gives the row's layout and the fingerprint
that rows, examples, models and answers carry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import Refused
from schemas.events import EventType

if TYPE_CHECKING:
    from features.items import ItemTable, ItemWindows
    from features.rows import Rows

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

Array = NDArray[Any]
T = TypeVar("T")


class Table(Protocol):
    """Computes features of a kind."""

    def __call__(self, context: Any, keys: tuple[Any, ...]) -> Array:
        """Those of the keys beside each other, [n, sum of their lengths]."""


class Level(StrEnum):
    """Whether a feature has one value a request or one a candidate item."""

    USER = "user"
    ITEM = "item"


class Drift(StrEnum):
    """How the drift monitor bins a feature (32 bins, frozen with the reference)."""

    NUMERIC = "numeric"  # equi-probable bins plus zero, null and out-of-range
    CATEGORICAL = "categorical"  # the most frequent values, OTHER and UNSEEN
    HASHED = "hashed"  # high-cardinality ids: hash buckets
    NONE = "none"  # not watched


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """What features are computed from, and what several of them need."""

    # Not taken over by `replace`: it belongs to these rows and this time.
    _shared: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shared(self, key: Any, compute: Callable[[], T]) -> T:
        """What several features need: computed once, whichever asks first."""
        if key not in self._shared:
            self._shared[key] = compute()
        found: T = self._shared[key]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class UserContext(_Context):
    """n requests with their users' rows. Hash 0: not given."""

    rows: Rows
    now_ms: NDArray[np.int64]  # [n] the request's event time: the "now" of windows and decay
    surface: NDArray[np.uint64]  # [n] hashes
    device: NDArray[np.uint64]
    country: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemContext(_Context):
    """m candidates, each for one of the n requests of `users`."""

    users: UserContext
    request: NDArray[np.int64]  # [m] index of the candidate's request
    hashes: NDArray[np.uint64]  # [m] the candidate's item hash
    items: ItemTable
    index: NDArray[np.int64]  # [m] the candidate's index in `items`; -1: unknown item

    @property
    def now_ms(self) -> NDArray[np.int64]:
        """[m] event time of each candidate's request."""
        return self.users.now_ms[self.request]

    @property
    def windows(self) -> ItemWindows:
        """Event counts of the candidates: one for all features, which share windows."""
        return self.shared("windows", lambda: self.items.windows(self.index, self.now_ms))

    @property
    def history_index(self) -> NDArray[np.int64]:
        """Index in `items` of all items of the users' histories; -1: unknown item."""
        return self.shared("history", lambda: self.items.index(self.users.rows.history_item))


@dataclass(frozen=True, slots=True)
class Together:
    """
    The `compute` of a feature that is one of several of a kind.

    Those declared next to each other take one call, which costs more than the few numbers it gives.
    """

    table: Table
    key: Any  # hashable: which of the kind

    def __call__(self, context: Any) -> Array:
        """Of this one alone: [n] or [n, length]."""
        found = self.table(context, (self.key,))
        return found[:, 0] if found.shape[1] == 1 else found


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of a packed matrix that one call computes."""

    names: str  # of their features
    width: int
    compute: Callable[[Any], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """
    One feature. `compute` takes a UserContext or ItemContext and returns [n] or [n, length].

    `revision` must grow when `compute` changes its meaning: it is part of the fingerprint.
    `defaultable` is not: it says what a reader may do without, not what a value means.
    """

    name: str
    level: Level
    dtype: Literal["int64", "float32"]
    compute: Callable[[Any], Array]
    doc: str
    length: int = 1
    default: float = 0
    drift: Drift = Drift.NUMERIC
    revision: int = 1
    defaultable: bool = False  # examples from before this feature may be read: see `missing`

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a feature's name must be an identifier, got {self.name!r}")
        if self.length < 1:
            raise ValueError(f"{self.name}: length must be at least 1, got {self.length}")
        if self.dtype not in ("int64", "float32"):
            raise ValueError(f"{self.name}: dtype must be int64 or float32, got {self.dtype!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPolicy:
    """What a row keeps. Part of the fingerprint: another policy is another feature set."""

    history_length: int = 50
    history_types: tuple[EventType, ...] = (
        EventType.VIEW,
        EventType.CLICK,
        EventType.LIKE,
        EventType.DISLIKE,
        EventType.SHARE,
        EventType.CART,
        EventType.PURCHASE,
        EventType.RATING,
    )
    ring_length: int = 256
    hour_tiles: int = 25  # of the newest event's own and before: windows of 24 whole ones
    day_tiles: int = 31
    horizon_ms: int = DAY_MS  # older than the newest event by more: late, dropped
    lifetime_ms: int = 90 * DAY_MS  # a longer gap starts the row afresh
    future_ms: int = 5 * 60_000  # later than its Kafka timestamp by more: dead-lettered
    attributes: tuple[str, ...] = ()  # static user attributes kept from PROFILE

    def __post_init__(self) -> None:
        for name in ("history_length", "ring_length", "hour_tiles", "day_tiles"):
            if not 1 <= getattr(self, name) <= 1_000:  # lengths are stored in 10 bits
                raise ValueError(f"{name} must be from 1 to 1000, got {getattr(self, name)}")
        if len(self.attributes) > 255:  # their number in 8
            raise ValueError(f"a row keeps 255 attributes at most, got {len(self.attributes)}")


@dataclass(frozen=True)
class FeatureSet:
    """All features of one model family, and the row that can yield them."""

    features: tuple[Feature, ...]
    row: RowPolicy = field(default_factory=RowPolicy)

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(f"declared twice: {', '.join(doubled)}")

    def of(self, level: Level, dtype: str | None = None) -> tuple[Feature, ...]:
        """The features of a level (and dtype), in declaration order."""
        return self._of[level, dtype]

    @cached_property
    def _of(self) -> dict[tuple[Level, str | None], tuple[Feature, ...]]:
        """They are asked for at every batch."""
        return {
            (level, dtype): tuple(
                f for f in self.features if f.level == level and dtype in (None, f.dtype)
            )
            for level in Level
            for dtype in (None, "int64", "float32")
        }

    def columns(self, level: Level, dtype: str) -> tuple[Columns, ...]:
        """What computes the packed matrix of a level and dtype, from left to right."""
        return self._columns[level, dtype]

    @cached_property
    def _columns(self) -> dict[tuple[Level, str], tuple[Columns, ...]]:
        return {
            (level, dtype): tuple(
                _joined(list(of_one)) for _, of_one in groupby(self.of(level, dtype), _kind)
            )
            for level in Level
            for dtype in ("int64", "float32")
        }

    def width(self, level: Level, dtype: str) -> int:
        """Columns of the packed matrix of a level and dtype."""
        return sum(f.length for f in self.of(level, dtype))

    def slices(self, level: Level, dtype: str) -> dict[str, slice]:
        """Where each feature lies in the packed matrix of its level and dtype."""
        found, at = {}, 0
        for f in self.of(level, dtype):
            found[f.name] = slice(at, at + f.length)
            at += f.length
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when any declared feature or the row's policy changes."""
        return hashlib.sha256(declared(self).encode()).hexdigest()[:16]


def _kind(feature: Feature) -> Any:
    """Equal for features that are computed together."""
    compute = feature.compute
    return compute.table if isinstance(compute, Together) else feature.name


def _joined(of_one: Sequence[Feature]) -> Columns:
    """Of neighbours of one kind."""
    first, last = of_one[0], of_one[-1]
    if isinstance(first.compute, Together):
        keys = tuple(f.compute.key for f in of_one if isinstance(f.compute, Together))
        compute: Callable[[Any], Array] = partial(first.compute.table, keys=keys)
    else:
        compute = first.compute
    names = first.name if first is last else f"{first.name} to {last.name}"
    return Columns(names, sum(f.length for f in of_one), compute)


def declared(features: FeatureSet) -> str:
    """
    The set's declaration as canonical JSON: what its fingerprint is the hash of.

    Whoever stores values of the set stores this beside them, so that a later set can tell what they
    lack: see `missing`.
    """
    declaration = {
        "features": [_described(f) for f in features.features],
        "row": {name: getattr(features.row, name) for name in RowPolicy.__slots__},
    }
    return json.dumps(declaration, sort_keys=True, separators=(",", ":"))


def declared_set(declaration: str, known: Iterable[Feature]) -> FeatureSet:
    """
    The feature set of a declaration, computed by what is `known` here.

    Raises:
        Refused: no such set, or not all of its features are known in the form that it declares;
            every difference is named.
    """
    theirs = _parsed(declaration)
    computed = {(f.name, f.revision): f for f in known}
    problems: list[str] = []
    found: list[Feature] = []
    for other in theirs["features"]:
        mine = computed.get((other["name"], other.get("revision")))
        if mine is None:
            problems.append(f"{other['name']} (revision {other.get('revision')}) is not known here")
            continue
        found.append(mine)
        problems += [f"{mine.name}: {line}" for line in _differences(_described(mine), other)]
    policy, lines = _policy(theirs["row"])
    if problems + lines:
        raise Refused(f"a feature set that cannot be computed here: {'; '.join(problems + lines)}")
    return FeatureSet(tuple(found), row=policy)


def _policy(row: dict[str, Any]) -> tuple[RowPolicy, list[str]]:
    """The row's policy of a declaration, and what keeps it from being one."""
    unknown = [f"row: {name} is not known here" for name in row.keys() - {*RowPolicy.__slots__}]
    given = {name: value for name, value in row.items() if name in RowPolicy.__slots__}
    try:
        types = tuple(EventType(value) for value in given.pop("history_types", ()))
        attributes = tuple(given.pop("attributes", ()))
        policy = RowPolicy(**given, history_types=types, attributes=attributes)
    except (TypeError, ValueError) as error:
        return RowPolicy(), [*unknown, f"row: {error}"]
    ours = json.loads(declared(FeatureSet((), row=policy)))["row"]
    return policy, [*unknown, *_row_differences(ours, row)]


def missing(features: FeatureSet, declaration: str) -> tuple[str, ...]:
    """
    The features that values stored under `declaration` lack, each of which may have its default.

    Nothing is missing under the set's own declaration. Order counts, since packed values lie in it.
    A row may keep more attributes than it did: what it kept before means the same.

    Raises:
        Refused: the sets differ in more than missing features that are declared `defaultable`;
            every difference is named.
    """
    ours, theirs = json.loads(declared(features)), _parsed(declaration)
    had = {f["name"] for f in theirs["features"]}
    lacking = tuple(f for f in features.features if f.name not in had)
    problems = [f"{f.name} is missing and not defaultable" for f in lacking if not f.defaultable]
    problems += _feature_differences(ours["features"], theirs["features"])
    problems += _row_differences(ours["row"], theirs["row"])
    if problems:
        raise Refused(f"stored for another feature set: {'; '.join(problems)}")
    return tuple(f.name for f in lacking)


_DECLARED_OF_FEATURE: Final = ("name", "level", "dtype", "length", "default", "drift", "revision")


def _described(feature: Feature) -> dict[str, Any]:
    return {name: getattr(feature, name) for name in _DECLARED_OF_FEATURE}


def _parsed(declaration: str) -> dict[str, Any]:
    try:
        found = json.loads(declaration)
        names = [f["name"] for f in found["features"]]
        whole = isinstance(found["row"], dict) and len(set(names)) == len(names)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(f"no feature set's declaration: {declaration:.80} ({error!r})") from error
    if not whole:
        raise Refused(f"no feature set's declaration: {declaration:.80}")
    return dict(found)


def _feature_differences(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> list[str]:
    """How features that both declare differ, and what only they declare: a line each."""
    mine = {f["name"]: f for f in ours}
    found = []
    for other in theirs:
        name = other["name"]
        if name not in mine:
            found.append(f"{name} is no longer declared")
            continue
        found += [f"{name}: {line}" for line in _differences(mine[name], other)]
    common = [f["name"] for f in theirs if f["name"] in mine]
    kept = set(common)
    if common != [f["name"] for f in ours if f["name"] in kept]:
        found.append("the features stand in another order")
    return found


def _row_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    grown = set(ours["attributes"]) >= set(theirs.get("attributes", ()))
    theirs = theirs | ({"attributes": ours["attributes"]} if grown else {})
    return [f"row: {line}" for line in _differences(ours, theirs)]


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {theirs.get(name)!r}, here {ours.get(name)!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
