"""
Calls of PredictionService.Predict, read from their bytes: a call has a hundred tensors of a number
or two, and an object for each takes longer than the model.

Only plain messages are read here: all inputs of the signature, numbers, whose values all stand
there. Of any other, `Layout.scan` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from features.declare import Array
from inference import tensor_bytes
from inference.tensor_bytes import (
    AXIS,
    AXIS_STOP,
    BYTES,
    MOST_VARINT,
    NAME,
    NAME_STOP,
    SIZE,
    START,
    STOP,
    TYPE,
    Longs,
)
from inference.tensors import Signature

MAX_GATHERED: Final = 64  # rows of a call that is read with others
_MOST_NAME: Final = 127  # bytes: of longer ones, the length takes two
_ALIGNED: Final = 64  # bytes
_SPEC: Final = 1 << 3 | 2  # tag of a call's ModelSpec
# Of the types that are served: the DataType, and the tag of packed values.
PACKED: Final[Mapping[str, tuple[int, int]]] = {
    "float32": (1, 5 << 3 | 2),
    "int32": (3, 7 << 3 | 2),
    "int64": (9, 10 << 3 | 2),
}


class Layout:
    """How messages for one signature are read."""

    def __init__(self, signature: Signature, max_values: int) -> None:
        """
        Args:
            signature: one that `fits`.
            max_values: of all tensors of a call together.
        """
        specs = signature.inputs
        self._names = [*specs]
        self._dtypes = [np.dtype(spec.dtype) for spec in specs.values()]
        encoded = [name.encode() for name in specs]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._lines = np.zeros((len(specs), 7), np.int64)
        self._lines[:, NAME_STOP] = np.cumsum([len(name) for name in encoded])
        self._lines[:, AXIS_STOP] = np.cumsum([len(spec.shape) for spec in specs.values()])
        for stops, starts in ((NAME_STOP, NAME), (AXIS_STOP, AXIS)):
            self._lines[1:, starts] = self._lines[:-1, stops]
        for line, spec in zip(self._lines, specs.values(), strict=True):
            line[TYPE : BYTES + 1] = (*PACKED[spec.dtype], np.dtype(spec.dtype).itemsize)
        self._slots = np.zeros(2 << len(specs).bit_length(), np.int64)
        tensor_bytes.name_slots(self._text, self._lines, self._slots)
        self._wanted = np.array(
            [-1 if size is None else size for spec in specs.values() for size in spec.shape],
            np.int64,
        )
        leads = [spec.lead for spec in specs.values()]
        axes = self._lines[:, AXIS]
        self._leading = axes[[lead == "rows" for lead in leads]]  # count the rows, all of them
        self._paired = axes[[lead == "pairs" for lead in leads]]  # a multiple of them
        self._alone = [at for at, lead in enumerate(leads) if lead == "none"]
        self._grows = [lead != "none" for lead in leads]
        self._free = np.setdiff1d(np.flatnonzero(self._wanted < 0), axes[self._grows])
        self._max_values = max_values

    @staticmethod
    def fits(signature: Signature) -> bool:
        """Whether messages for it can be read so: it takes numbers alone, and has rows."""
        specs = signature.inputs
        return (
            all(spec.dtype in PACKED for spec in specs.values())
            and all(spec.shape for spec in specs.values() if spec.lead != "none")
            and any(spec.lead == "rows" for spec in specs.values())
            and all(len(name.encode()) <= _MOST_NAME for name in specs)
        )

    def scan(self, data: bytes, start: int) -> Scanned | None:
        """The call whose inputs are all of `data` from `start` on; None: it is not plain."""
        table, sizes = np.zeros((len(self._names), 4), np.int64), self._wanted.copy()
        given_bytes = np.frombuffer(data, np.uint8)[start:]
        values = tensor_bytes.scan(given_bytes, self._text, self._slots, self._lines, table, sizes)
        if not 0 <= values <= self._max_values:
            return None
        leading = sizes[self._leading]
        rows = int(leading[0])
        if not 0 < rows <= MAX_GATHERED or (leading != rows).any():
            return None
        if (sizes[self._paired] % rows).any():
            return None
        table[:, : STOP + 1] += start
        return Scanned(self, data, table, sizes, rows)

    def key(self, one: Scanned) -> tuple[object, ...]:
        """What calls have in common that can be read together."""
        values = [one.data[one.table[at, START] : one.table[at, STOP]] for at in self._alone]
        paired = one.sizes[self._paired] // one.rows  # so no call's pairs can pass to another
        return (one.sizes[self._free].tobytes(), paired.tobytes(), *values)

    def read(self, calls: Sequence[Scanned]) -> dict[str, Array]:
        """The inputs of calls with equal keys, below each other."""
        tables = np.stack([one.table for one in calls])
        ends = np.cumsum([len(one.data) for one in calls])
        tables[1:, :, : STOP + 1] += ends[:-1, None, None]
        for at in self._alone:  # by their keys, they are all the same
            tables[1:, at] = 0
        lengths = tables[:, :, SIZE].sum(axis=0)
        places = np.cumsum([0, *(-(-lengths // _ALIGNED) * _ALIGNED)])
        out = np.empty(int(places[-1]), np.uint8)
        data = np.frombuffer(b"".join([one.data for one in calls]), np.uint8)
        tensor_bytes.stack(data, tables, self._lines, places, out)
        own, together = calls[0].sizes.tolist(), np.sum([one.sizes for one in calls], 0).tolist()
        found = {}
        for at, (name, (first, stop)) in enumerate(
            zip(self._names, self._lines[:, AXIS : AXIS_STOP + 1].tolist(), strict=True)
        ):
            shape = own[first:stop]
            if self._grows[at]:
                shape[0] = together[first]
            place = int(places[at])
            values = out[place : place + int(lengths[at])].view(self._dtypes[at])
            found[name] = values.reshape(shape)
        return found


def layout_of(signature: Signature, max_values: int) -> Layout | None:
    """None: messages for it cannot be read so."""
    return Layout(signature, max_values) if Layout.fits(signature) else None


def spec_stop(data: bytes) -> int:
    """
    Where a message's ModelSpec ends, if it comes first, as every library writes it; else 0.

    >>> spec_stop(bytes([0x0A, 2, 0x0A, 0, 0x12, 0]))
    4
    """
    if len(data) < 2 or data[0] != _SPEC or data[1] > _MOST_NAME or len(data) < 2 + data[1]:
        return 0
    return 2 + data[1]


def varints(values: Longs) -> bytes:
    """
    Values [n] as a packed field holds them.

    >>> varints(np.array([1, 300]))
    b'\\x01\\xac\\x02'
    """
    out = np.empty(MOST_VARINT * len(values), np.uint8)
    return out[: tensor_bytes.put_varints(values, out)].tobytes()


@dataclass(frozen=True, slots=True)
class Scanned:
    """Implements `inference.tensors.Unread`: a message, and where in it the tensors are."""

    layout: Layout
    data: bytes
    table: Longs  # [inputs, 4]
    sizes: Longs  # [axes of all inputs]
    rows: int

    def __len__(self) -> int:
        return self.rows

    def key(self) -> tuple[object, ...]:
        return self.layout.key(self)

    def read(self, others: Sequence[Scanned]) -> dict[str, Array]:
        return self.layout.read([self, *others])
