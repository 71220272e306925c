"""Which records of a batch are fit to be folded: by key, by decoding, by judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.misplaced import KeyGroups
from features.validate import MAX_ID_BYTES, Candidates, rejections
from schemas.columns import Decoded
from schemas.errors import Reason, Rejected

COLUMNS = ("event_id", "user_id", "item_id", "event_type", "event_time", "value", "profile")


class EventReader(Protocol):
    """What the values of a batch mean: columns of UserEvent. `ColumnReader` for framed Avro."""

    dtypes: dict[str, pl.DataType]

    def read(self, values: Sequence[bytes | None], columns: Sequence[str] | None = None) -> Decoded:
        """As `ColumnReader.read`."""


class Records(Protocol):
    """n records with their keys told apart: of one batch, or of several put together."""

    @property
    def values(self) -> Sequence[bytes | None]: ...

    @property
    def timestamps_ms(self) -> NDArray[np.int64]: ...

    @property
    def groups(self) -> KeyGroups: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What of a batch is fit to be folded, and why the rest of what belongs here is not."""

    frame: pl.DataFrame  # [n] COLUMNS of the good events
    index: NDArray[np.int64]  # [n] place of each in the batch
    erased: NDArray[np.int64]  # [e] places of null values, which erase their user
    refused: tuple[tuple[int, Rejected], ...]  # by place


def fit(
    records: Records,
    here: NDArray[np.bool_],
    reader: EventReader,
    future_ms: int,
) -> Fit:
    """
    Decode and judge the records that belong `here` [n].

    Raises:
        RegistryUnavailable: a writer's schema is not known yet and cannot be asked for.
    """
    groups = records.groups
    refused = _bad_keys(records, here)
    wanted = here.copy()
    wanted[list(refused)] = False
    values = records.values
    if not wanted.all():
        values = [v if ok else None for v, ok in zip(values, wanted.tolist(), strict=True)]
    decoded = reader.read(values, COLUMNS)
    null = wanted.copy()
    null[decoded.index] = False
    null[[at for at, _ in decoded.bad]] = False
    judged = rejections(
        Candidates(
            frame=decoded.frame,
            users=_texts(groups.keys).gather(groups.code[decoded.index]),
            timestamps_ms=records.timestamps_ms[decoded.index],
            future_ms=future_ms,
        )
    )
    frame, index = decoded.frame, decoded.index
    if judged:
        good = np.ones(len(index), bool)
        good[[row for row, _ in judged]] = False
        refused |= {int(index[row]): why for row, why in judged}
        frame, index = frame.filter(pl.Series(good)), index[good]
    return Fit(
        frame=frame,
        index=index,
        erased=np.flatnonzero(null),
        refused=tuple(sorted((refused | dict(decoded.bad)).items())),
    )


def _bad_keys(records: Records, here: NDArray[np.bool_]) -> dict[int, Rejected]:
    """Null keys, and keys that can be nobody's of a record without a value, by place."""
    groups = records.groups
    found = {
        at: Rejected(Reason.NULL_KEY, "a user-event's key is its user id")
        for at in np.flatnonzero(here & (groups.code < 0)).tolist()
    }
    if None in records.values:
        for at in np.flatnonzero(here & (groups.code >= 0)).tolist():
            why = _odd(groups.keys[groups.code[at]]) if records.values[at] is None else None
            if why is not None:
                found[at] = why
    return found


def _odd(key: bytes) -> Rejected | None:
    if not key:
        return Rejected(Reason.MISSING_FIELD, "the key is empty")
    if len(key) > MAX_ID_BYTES:
        return Rejected(Reason.TOO_LARGE, f"the key has {len(key)} bytes")
    if _text(key) is None:
        return Rejected(Reason.KEY_MISMATCH, f"the key is not UTF-8: {key[:40]!r}")
    return None


def _texts(keys: Sequence[bytes]) -> pl.Series:
    """The keys as text; null: not UTF-8."""
    return pl.Series([_text(key) for key in keys], dtype=pl.String)


def _text(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None
