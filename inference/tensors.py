"""
Calls of a model's own signatures with tensors: what fits, and which calls can share a model call.

Pure: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import numpy as np

from features.declare import Array
from schemas.errors import NotServed, Reason, Rejected
from schemas.images import ImageLimits, check_image

# What the first axis of an input counts: rows (one a user), pairs (row x candidate, flattened), or
# nothing, where the input is one value for the whole call.
Lead = Literal["rows", "pairs", "none"]
CANDIDATES: Final = "candidates"  # [rows, c]: says how many pairs a row has
MAX_RANK: Final = 8  # of a tensor: TensorFlow's kernels take no more
TEXT: Final = "string"  # TensorFlow's name for bytes; NumPy has objects
IMAGES: Final = "_bytes"  # how inputs end that take encoded images, as for TensorFlow Serving
_NUMBERS: Final = {name: np.dtype(name) for name in ("int64", "int32", "float32")}
K: Final = "k"  # how many items a row gets
_MOST_KEPT: Final = 64  # signatures
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a signature."""

    dtype: str  # as NumPy names it, or "string"
    shape: tuple[int | None, ...]  # None: any size
    lead: Lead = "rows"

    def __str__(self) -> str:
        return f"{self.dtype} {[-1 if size is None else size for size in self.shape]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a signature takes and gives."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLimits:
    """How much one call may bring."""

    max_rows: int = 512
    max_values: int = 1_000_000  # of all inputs together
    max_k: int = 500
    max_candidates: int = 5_000
    max_text_bytes: int = 8 << 20  # of all texts together
    image: ImageLimits = field(default_factory=ImageLimits)
    max_pixels: int = 64_000_000  # of all images together


class Unread(Protocol):
    """
    Inputs as they came, of few values. A call has a hundred: reading those of a whole batch at once
    takes little longer than reading those of one call.
    """

    def __len__(self) -> int:
        """Rows."""

    def key(self) -> tuple[object, ...]:
        """What has equal keys can be read together."""

    def read(self, others: Sequence[Any]) -> dict[str, Array]:
        """
        The inputs of this one's rows, then those of the others, which are of its own type.

        Raises:
            Rejected: some of them are no tensors of the signature's types.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorCall:
    """One call: its inputs fit the signature of that version, or are read and checked later."""

    version: int
    signature: str
    spec: Signature
    inputs: Mapping[str, Array] | Unread
    rows: int

    def key(self) -> tuple[object, ...]:
        """Calls with equal keys can be made as one: they differ in rows only."""
        if not isinstance(self.inputs, Mapping):
            return (self.version, self.signature, type(self.inputs), *self.inputs.key())
        parts = [
            (name, array.shape[1:], array.tobytes() if array.ndim == 0 else b"")
            for name, array in sorted(self.inputs.items())
        ]
        return (self.version, self.signature, *parts)


class PerSignature(Generic[T]):
    """
    What is made of each signature in use, once. By identity, for which the signature is kept: to
    compare two takes longer than to read a call. For one thread.
    """

    def __init__(self, make: Callable[[Signature], T]) -> None:
        self._make = make
        self._of: dict[int, tuple[Signature, T]] = {}

    def of(self, signature: Signature) -> T:
        found = self._of.get(id(signature))
        if found is None:
            if len(self._of) >= _MOST_KEPT:  # those of versions that are gone
                self._of.clear()
            found = self._of[id(signature)] = (signature, self._make(signature))
        return found[1]


def signature_of(signatures: Mapping[str, Signature], name: str) -> Signature:
    """
    The signature of that name.

    Raises:
        NotServed: there is none.
    """
    found = signatures.get(name)
    if found is None:
        raise NotServed(f"no signature {name[:100]!r}: there are {', '.join(sorted(signatures))}")
    return found


def checked(
    inputs: Mapping[str, Array], signature: Signature, limits: TensorLimits
) -> tuple[dict[str, Array], int]:
    """
    The inputs as the model takes them, and their number of rows.

    Raises:
        Rejected: they do not fit; every problem is told.
    """
    missing = sorted(signature.inputs.keys() - inputs.keys())
    extra = sorted(inputs.keys() - signature.inputs.keys())
    if missing or extra:
        told = [f"input {name!r} is missing" for name in missing]
        told += [f"input {name[:100]!r} is not of this signature" for name in extra[:20]]
        raise Rejected(Reason.MISSING_FIELD, "; ".join(told))
    if (size := sum(array.size for array in inputs.values())) > limits.max_values:
        raise Rejected(Reason.TOO_LARGE, f"{size} values, at most {limits.max_values} are taken")
    problems = [
        problem
        for name, spec in signature.inputs.items()
        if (problem := _problem(name, inputs[name], spec))
    ]
    if problems:
        raise Rejected(Reason.OUT_OF_RANGE, "; ".join(problems))
    _check_texts(inputs, signature, limits)
    return dict(inputs), _rows(inputs, signature, limits)


def grouped(calls: Sequence[TensorCall], max_rows: int) -> list[list[int]]:
    """
    Places of the calls that are made together, at most `max_rows` rows each unless one has more.
    """
    groups: list[list[int]] = []
    open_groups: dict[tuple[object, ...], tuple[list[int], int]] = {}
    for at, call in enumerate(calls):
        key = call.key()
        group, rows = open_groups.get(key, ([], 0))
        if not group or rows + call.rows > max_rows:
            group, rows = [], 0
            groups.append(group)
        group.append(at)
        open_groups[key] = (group, rows + call.rows)
    return groups


def merged(calls: Sequence[TensorCall], limits: TensorLimits) -> dict[str, Array]:
    """
    The inputs of calls with equal keys as those of one call.

    Raises:
        Rejected: some of them, read only now, do not fit; or not within the limits of one call.
    """
    given = [call.inputs for call in calls]
    first, *others = given
    if not isinstance(first, Mapping):
        found, rows = checked(first.read(others), calls[0].spec, limits)
        if rows != sum(call.rows for call in calls):
            raise Rejected(Reason.OUT_OF_RANGE, f"{rows} rows in inputs of {len(calls)} calls")
        return found
    if not others:
        return dict(first)
    arrays = [one for one in given if isinstance(one, Mapping)]
    return {
        name: array if array.ndim == 0 else np.concatenate([one[name] for one in arrays])
        for name, array in first.items()
    }


def divided(outputs: Mapping[str, Array], rows: Iterable[int]) -> list[dict[str, Array]]:
    """
    The outputs of one call, cut into those of its parts.

    >>> divided({"scores": np.array([1, 2, 3])}, [1, 2])
    [{'scores': array([1])}, {'scores': array([2, 3])}]
    """
    cuts = np.cumsum([0, *rows]).tolist()
    return [
        {name: array[start:stop] for name, array in outputs.items()}
        for start, stop in pairwise(cuts)
    ]


def _problem(name: str, array: Array, spec: TensorSpec) -> str:
    """Why an input does not fit, or an empty text."""
    if array.dtype == _NUMBERS.get(spec.dtype) and array.shape[1:] == spec.shape[1:]:
        plain = array.ndim > 0 and spec.shape[:1] == (None,)  # of most inputs, which are many
        if plain and (array.dtype.kind != "f" or np.isfinite(array).all()):
            return ""
    dtype = TEXT if array.dtype.kind == "O" else array.dtype.name
    given = f"{dtype} {list(array.shape)}"
    if dtype != spec.dtype:
        return f"input {name!r} is {given}, expected {spec}"
    fits = len(array.shape) == len(spec.shape) and all(
        size is None or size == has for size, has in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        return f"input {name!r} is {given}, expected {spec}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"input {name!r} holds NaN or infinity"
    return ""


def _rows(inputs: Mapping[str, Array], signature: Signature, limits: TensorLimits) -> int:
    """How many rows the inputs have, all the same."""
    lengths = {
        name: len(inputs[name]) for name, spec in signature.inputs.items() if spec.lead == "rows"
    }
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise Rejected(Reason.OUT_OF_RANGE, f"inputs differ in their rows: {told}")
    rows = next(iter(lengths.values()))
    if not 1 <= rows <= limits.max_rows:
        raise Rejected(
            Reason.OUT_OF_RANGE, f"{rows} rows: between 1 and {limits.max_rows} are taken"
        )
    _check_pairs(inputs, signature, rows, limits)
    k = inputs.get(K)
    if k is not None and not 1 <= int(k) <= limits.max_k:
        raise Rejected(Reason.OUT_OF_RANGE, f"k must be between 1 and {limits.max_k}, got {int(k)}")
    return rows


def _check_pairs(
    inputs: Mapping[str, Array], signature: Signature, rows: int, limits: TensorLimits
) -> None:
    paired = [name for name, spec in signature.inputs.items() if spec.lead == "pairs"]
    if not paired:
        return
    wide = inputs[CANDIDATES].shape[1]
    if not 1 <= wide <= limits.max_candidates:
        detail = f"{wide} candidates a row: between 1 and {limits.max_candidates} are ranked"
        raise Rejected(Reason.OUT_OF_RANGE, detail)
    wrong = [name for name in paired if len(inputs[name]) != rows * wide]
    if wrong:
        detail = f"{len(inputs[wrong[0]])} values of {wrong[0]!r} for {rows} x {wide} candidates"
        raise Rejected(Reason.OUT_OF_RANGE, detail)


def _check_texts(inputs: Mapping[str, Array], signature: Signature, limits: TensorLimits) -> None:
    """Bytes that the model would copy or decode, before it does."""
    # Of all places: one text can be said to stand in each of them.
    texts = {name: inputs[name] for name, spec in signature.inputs.items() if spec.dtype == TEXT}
    size = sum(len(text) for array in texts.values() for text in array.flat)
    if size > limits.max_text_bytes:
        detail = f"{size} bytes in all texts, at most {limits.max_text_bytes} are taken"
        raise Rejected(Reason.TOO_LARGE, detail)
    pixels = 0
    for name, array in texts.items():
        if name.endswith(IMAGES):
            for at, data in enumerate(array.flat):
                pixels += _pixels(f"input {name!r}, number {at}", data, limits.image)
    if pixels > limits.max_pixels:
        detail = f"{pixels} pixels in all images, at most {limits.max_pixels} are taken"
        raise Rejected(Reason.TOO_LARGE, detail)


def _pixels(place: str, data: bytes, limits: ImageLimits) -> int:
    try:
        return check_image(data, None, limits).pixels
    except Rejected as rejected:
        raise Rejected(rejected.reason, f"{place}: {rejected.detail}") from rejected
