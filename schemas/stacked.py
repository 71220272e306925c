"""Columns of several batches as columns of one, so that they are written at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.column_writer import Column, Encoded, Ragged, Same, Some


def stacked(batches: Sequence[Mapping[str, Column]], sizes: Sequence[int]) -> dict[str, Column]:
    """
    The columns of the batches' records, one batch after the other.

    Args:
        batches: of the same fields; matrices of one field are equally wide.
        sizes: how many records each has.

    Raises:
        ValueError, KeyError: the batches do not fit together.

    >>> stacked([{"name": ["a"], "n": Same(1)}, {"name": Same("b"), "n": Same(1)}], [1, 2])
    {'name': ['a', 'b', 'b'], 'n': Same(value=1)}
    """
    return {name: _column([batch[name] for batch in batches], sizes) for name in batches[0]}


def _column(parts: Sequence[Column], sizes: Sequence[int]) -> Column:
    first = parts[0]
    if isinstance(first, Same) and all(one == first for one in parts):
        return first
    if any(isinstance(one, Some) for one in parts):
        return _some(parts, sizes)
    if isinstance(first, Ragged):
        return _ragged(parts)
    if isinstance(first, Mapping):
        return stacked(parts, sizes)  # type: ignore[arg-type] # all are, or it fails
    if all(isinstance(one, Encoded) for one in parts):
        return _encoded(parts)
    each = [_each(one, size) for one, size in zip(parts, sizes, strict=True)]
    if all(isinstance(one, np.ndarray) for one in each):
        return np.concatenate(each)
    return list(chain.from_iterable(each))


def _each(part: Any, size: int) -> Any:
    """A value a record."""
    if isinstance(part, Encoded):
        return part.texts()
    if not isinstance(part, Same):
        return part
    value = part.value
    plain = value is None or isinstance(value, str | bytes)
    return [value] * size if plain else np.full(size, value)


def _encoded(parts: Sequence[Any]) -> Encoded:
    content = np.concatenate([one.content for one in parts])
    return Encoded(content, _joined([one.splits for one in parts]))


def _ragged(parts: Sequence[Any]) -> Ragged:
    counts = [int(one.splits[-1]) for one in parts]
    values = _column([one.values for one in parts], counts)
    return Ragged(_joined([one.splits for one in parts]), values)


def _joined(splits: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Splits of values that stand one after the other."""
    starts = np.cumsum([0, *(int(one[-1]) for one in splits)])
    moved = [one[1:] + start for one, start in zip(splits, starts, strict=False)]
    return np.concatenate([np.zeros(1, np.int64), *moved])


def _some(parts: Sequence[Any], sizes: Sequence[int]) -> Some:
    """Where a batch says nothing but null, none of its records is there."""
    given = [one for one in parts if isinstance(one, Some)]
    present = [
        one.present if isinstance(one, Some) else np.zeros(size, np.bool_)
        for one, size in zip(parts, sizes, strict=True)
    ]
    counts = [int(one.present.sum()) for one in given]
    return Some(np.concatenate(present), stacked([one.values for one in given], counts))
