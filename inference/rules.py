"""
Business rules and diversity: what is made of the best candidates before they become an answer.

A rule is a function from candidates to candidates. It leaves out, or puts in another order; the
scores stay the model's own. Rules are applied in the order given, to what is retrieved from the
catalogue, popular items included; a list of given candidates is ranked as it is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from features.hashing import hash_ids
from schemas.errors import Misconfigured

if TYPE_CHECKING:
    from features.items import ItemTable

DEPTH: Final = 4  # candidates a place of the list, where there are rules

Attribute = Literal["category", "creator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The best candidates of n requests, in order."""

    at: NDArray[np.int64]  # [n, m] places in the item table; -1: none
    scores: NDArray[np.float32]  # [n, m] the model's
    items: ItemTable

    def values(self, attribute: Attribute) -> NDArray[np.uint64]:
        """[n, m, v] hashes of the categories, or of the creator; 0 pads."""
        if attribute == "creator":
            found = self.items.creator[self.at][..., None]
        else:
            found = self.items.categories[self.at]
        return np.where(self.at[..., None] < 0, np.uint64(0), found)

    def kept(self, keep: NDArray[np.bool_]) -> Candidates:
        """Without the others, [n, m]."""
        return self.ordered(np.where(keep & (self.at >= 0), 0.0, np.inf))

    def ordered(self, rank: NDArray[np.float64]) -> Candidates:
        """By ascending rank, [n, m]; infinite: left out. Equal ranks stay in order."""
        order = np.argsort(rank, axis=1, kind="stable")
        gone = np.isinf(np.take_along_axis(rank, order, axis=1))
        at = np.take_along_axis(self.at, order, axis=1)
        scores = np.take_along_axis(self.scores, order, axis=1)
        return replace(
            self, at=np.where(gone, -1, at), scores=np.where(gone, np.float32(-np.inf), scores)
        )


class Rule(Protocol):
    """What is done with candidates of which the first k will be shown."""

    def __call__(self, candidates: Candidates, k: int) -> Candidates: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """Leave out items with one of these values, or (`keep`) those without any of them."""

    attribute: Attribute
    values: tuple[str, ...]
    keep: bool = False

    def __call__(self, candidates: Candidates, k: int) -> Candidates:
        return candidates.kept(_has(candidates, self.attribute, self.values) == self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boost:
    """Order as if items with one of these values scored so much more (or less)."""

    attribute: Attribute
    values: tuple[str, ...]
    by: float

    def __call__(self, candidates: Candidates, k: int) -> Candidates:
        given = _has(candidates, self.attribute, self.values) * self.by
        rank = -(candidates.scores.astype(np.float64) + given)
        return candidates.ordered(np.where(candidates.at < 0, np.inf, rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class AtMost:
    """No more than `count` items with the same value: those further down are left out."""

    attribute: Attribute
    count: int

    def __call__(self, candidates: Candidates, k: int) -> Candidates:
        values = candidates.values(self.attribute)
        known, code = np.unique(values, return_inverse=True)
        code = code.reshape(values.shape)
        taken = np.zeros((len(values), len(known)), np.int64)
        keep = np.zeros(candidates.at.shape, np.bool_)
        rows = np.arange(len(values))[:, None]
        # An item that is left out takes nobody's place: item by item, over all requests.
        for place in range(candidates.at.shape[1]):
            own, given = code[:, place], values[:, place] != 0
            keep[:, place] = ((taken[rows, own] < self.count) | ~given).all(axis=1)
            taken[rows, own] += keep[:, place, None] & given
        return candidates.kept(keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverse:
    """
    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998), for the first k places.

    Each place goes to the item with the best of (1 - weight) * relevance - weight * likeness to
    what stands above it. Relevance is the score within the list, 0 to 1; likeness of two items is
    the share of their categories that they have in common (Jaccard), with the creator as one more.
    """

    weight: float

    def __call__(self, candidates: Candidates, k: int) -> Candidates:
        n, m = candidates.at.shape
        real = candidates.at >= 0
        relevance = _within(candidates.scores, real)
        traits = np.concatenate(
            [candidates.values("category"), candidates.values("creator")], axis=2
        )
        rank = np.where(real, m + np.arange(m), np.inf)
        likeness = np.zeros((n, m))
        left = real.copy()
        rows = np.arange(n)
        for place in range(min(k, m)):
            worth = (1 - self.weight) * relevance - self.weight * likeness
            best = np.where(left, worth, -np.inf).argmax(axis=1)
            some = left[rows, best]
            rank[rows[some], best[some]] = place
            left[rows, best] = False
            likeness = np.maximum(likeness, _alike(traits, traits[rows, best]))
        return candidates.ordered(rank)


def applied(rules: Sequence[Rule], candidates: Candidates, k: int) -> Candidates:
    """What the rules make of the candidates, one after the other."""
    for rule in rules:
        candidates = rule(candidates, k)
    return candidates


def read_rules(path: Path) -> tuple[Rule, ...]:
    """
    The rules of a TOML file: an array of tables `rule`, each with its `kind`.

    Raises:
        Misconfigured: it is no such file; every problem is told.
    """
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"rules {path} cannot be read: {error}") from error
    tables = given.get("rule", [])
    if given.keys() - {"rule"} or not isinstance(tables, list) or not tables:
        raise Misconfigured(f"rules {path}: expected [[rule]] tables and nothing else")
    rules, problems = [], []
    for number, table in enumerate(tables, 1):
        try:
            rules.append(_rule(table))
        except ValueError as error:
            problems.append(f"rule {number}: {error}")
    if problems:
        raise Misconfigured(f"rules {path}: " + "; ".join(problems))
    return tuple(rules)


Fields = dict[str, Any]
_KINDS: Final[Mapping[str, tuple[Callable[[Fields], Rule], frozenset[str]]]] = {
    "block": (
        lambda f: Only(attribute=_attribute(f), values=_texts(f)),
        frozenset({"attribute", "values"}),
    ),
    "only": (
        lambda f: Only(attribute=_attribute(f), values=_texts(f), keep=True),
        frozenset({"attribute", "values"}),
    ),
    "boost": (
        lambda f: Boost(attribute=_attribute(f), values=_texts(f), by=_number(f, "by", -1e6, 1e6)),
        frozenset({"attribute", "values", "by"}),
    ),
    "at-most": (
        lambda f: AtMost(attribute=_attribute(f), count=_count(f)),
        frozenset({"attribute", "count"}),
    ),
    "diverse": (lambda f: Diverse(weight=_number(f, "weight", 0, 1)), frozenset({"weight"})),
}


def _rule(table: object) -> Rule:
    if not isinstance(table, dict):
        raise ValueError(f"expected a table, got {table!r:.100}")  # noqa: TRY004
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r:.100}")
    make, names = _KINDS[kind]
    fields = {name: value for name, value in table.items() if name != "kind"}
    if fields.keys() != names:
        raise ValueError(
            f"{kind} takes {', '.join(sorted(names))}, got {', '.join(sorted(fields)) or 'nothing'}"
        )
    return make(fields)


def _attribute(fields: Fields) -> Attribute:
    value = fields["attribute"]
    for known in get_args(Attribute):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(
        f"attribute must be one of {', '.join(get_args(Attribute))}, got {value!r:.100}"
    )


def _texts(fields: Fields) -> tuple[str, ...]:
    values = fields["values"]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"values must be a list of texts, got {values!r:.100}")
    return tuple(values)


def _number(fields: Fields, name: str, least: float, most: float) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} must be between {least:g} and {most:g}, got {value!r:.100}")
    return float(value)


def _count(fields: Fields) -> int:
    value = fields["count"]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"count must be a whole number of at least 1, got {value!r:.100}")
    return value


def _has(
    candidates: Candidates, attribute: Attribute, values: tuple[str, ...]
) -> NDArray[np.bool_]:
    """[n, m] whether an item has one of these values."""
    found = np.isin(candidates.values(attribute), hash_ids(values))
    return np.asarray(found.any(axis=2), np.bool_)


def _within(scores: NDArray[np.float32], real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n, m] scores from 0, the least of the row, to 1, its best; 0 where not real."""
    if not real.any():
        return np.zeros(real.shape)
    known = scores.astype(np.float64)
    least = np.where(real, known, np.inf).min(axis=1, keepdims=True)
    span = np.where(real, known, -np.inf).max(axis=1, keepdims=True) - least
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (known - least) / span
    return np.where(real, np.where(span > 0, share, 1.0), 0.0)


def _alike(traits: NDArray[np.uint64], chosen: NDArray[np.uint64]) -> NDArray[np.float64]:
    """
    [n, m] Jaccard likeness of each item to the chosen one of its row.

    Args:
        traits: [n, m, t] hashes; 0 pads.
        chosen: [n, t].
    """
    both = ((traits[..., None] == chosen[:, None, None]) & (traits[..., None] != 0)).any(axis=3)
    common = both.sum(axis=2)
    either = (traits != 0).sum(axis=2) + (chosen != 0).sum(axis=1)[:, None] - common
    return np.where(either > 0, common / np.maximum(either, 1), 0.0)
