"""TensorFlow Serving's JSON for tensors: rows (`instances`) and columns (`inputs`), both ways."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from features.declare import Array
from inference.tensors import MAX_RANK, TEXT, Signature, TensorSpec
from schemas.errors import Reason, Rejected

BASE64: Final = "b64"  # an object of this one key is bytes


def from_columns(inputs: Any, signature: Signature) -> dict[str, Array]:
    """
    Arrays from a whole tensor by input; a bare tensor where the signature has one input.

    Raises:
        Rejected: a value is no tensor of its input's type.
    """
    if not isinstance(inputs, Mapping):
        inputs = {_only_input(signature, "inputs"): inputs}
    return {name: _array(name, value, signature.inputs.get(name)) for name, value in inputs.items()}


def from_rows(instances: Sequence[Any], signature: Signature) -> dict[str, Array]:
    """
    Arrays from one object a row; from a bare value a row where the signature has one input.

    An input that comes once a candidate takes a list in each row. An input that is one value for
    the whole call takes that value in every row.

    Raises:
        Rejected: the rows differ in their inputs, or a value is no tensor of its input's type.
    """
    if not instances:
        raise Rejected(Reason.MISSING_FIELD, "instances is empty: it holds an object for each row")
    if not all(isinstance(row, Mapping) and not _is_encoded(row) for row in instances):
        only = _only_input(signature, "instances")
        instances = [{only: row} for row in instances]
    names = instances[0].keys()
    for at, row in enumerate(instances):
        if row.keys() != names:
            other = [name[:100] for name in sorted(row)[:20]]
            detail = f"instances[{at}] has other inputs than instances[0]: {other}"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
    return {
        name: stacked(name, [row[name] for row in instances], signature.inputs.get(name))
        for name in names
    }


def to_columns(outputs: Mapping[str, Array]) -> bytes:
    """
    The answer to columns.

    >>> to_columns({"scores": np.array([[1.0, 0.5]], np.float32)})
    b'{"outputs": [[1.0, 0.5]]}'
    """
    plain = {name: array.tolist() for name, array in outputs.items()}
    return _encoded("outputs", plain if len(plain) > 1 else next(iter(plain.values())))


def to_rows(outputs: Mapping[str, Array]) -> bytes:
    """
    The answer to rows.

    >>> to_rows({"a": np.array([1, 2]), "b": np.array([3, 4])})
    b'{"predictions": [{"a": 1, "b": 3}, {"a": 2, "b": 4}]}'
    """
    plain = {name: array.tolist() for name, array in outputs.items()}
    if len(plain) == 1:
        return _encoded("predictions", next(iter(plain.values())))
    rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return _encoded("predictions", rows)


def _encoded(name: str, value: Any) -> bytes:
    """
    As TensorFlow Serving writes it: scores of places left empty are -Infinity, bytes are in base64.
    """
    return json.dumps({name: value}, default=_as_base64).encode()


def _as_base64(value: bytes) -> dict[str, str]:
    return {BASE64: base64.b64encode(value).decode()}


def _is_encoded(value: Any) -> bool:
    """Whether it is bytes, as TensorFlow Serving writes them: {"b64": "..."}."""
    return isinstance(value, Mapping) and value.keys() == {BASE64}


def _only_input(signature: Signature, field: str) -> str:
    if len(signature.inputs) != 1:
        known = ", ".join(sorted(signature.inputs))
        detail = f"{field}: the signature has several inputs, name them: {known}"
        raise Rejected(Reason.MISSING_FIELD, detail)
    return next(iter(signature.inputs))


def stacked(name: str, rows: Sequence[Any], spec: TensorSpec | None) -> Array:
    """
    One input's values of all rows as the model takes them.

    Raises:
        Rejected: they are no tensor of its type.
    """
    if spec is None or spec.lead == "rows":
        return _array(name, rows, spec)
    if spec.lead == "none":
        if any(value != rows[0] for value in rows):
            detail = f"input {name!r} is one value for the whole call, the rows give several"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
        return _array(name, rows[0], spec)
    array = _array(name, rows, spec)
    if array.ndim != len(spec.shape) + 1:
        detail = f"input {name!r} takes a list in each row, one value a candidate"
        raise Rejected(Reason.OUT_OF_RANGE, detail)
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def _kinds(name: str, value: Any) -> set[type]:
    """
    Of what types the values of nested lists are.

    Raises:
        Rejected: they are nested deeper than any tensor.

    >>> sorted(kind.__name__ for kind in _kinds("k", [[1, 2.5], [None]]))
    ['NoneType', 'float', 'int']
    """
    found: set[type] = set()
    level: list[Any] = [value]
    for _ in range(MAX_RANK + 1):
        found |= set(map(type, level))
        if list not in found:
            return found
        found.discard(list)
        level = list(chain.from_iterable(one for one in level if type(one) is list))
    detail = f"input {name[:100]!r} has more than {MAX_RANK} dimensions"
    raise Rejected(Reason.OUT_OF_RANGE, detail)


def _array(name: str, value: Any, spec: TensorSpec | None) -> Array:
    """The tensor; of an input that the signature does not have, of whatever type it is."""
    if spec is not None and spec.dtype == TEXT:
        return _texts(name, value)
    # Before NumPy sees them: it gives every text of an array the room of the longest.
    if not _kinds(name, value) <= {int, float}:
        detail = (
            f"input {name[:100]!r} holds values that are not {spec.dtype if spec else 'numbers'}"
        )
        raise Rejected(Reason.OUT_OF_RANGE, detail)
    try:
        array = np.array(value)
    except ValueError as error:
        detail = f"input {name[:100]!r} is no tensor: its lists differ in length"
        raise Rejected(Reason.OUT_OF_RANGE, detail) from error
    wanted = np.dtype(spec.dtype if spec else array.dtype)
    if array.dtype.kind not in ("iuf" if wanted.kind == "f" else "iu") and array.size:
        detail = f"input {name[:100]!r} holds values that are not {wanted.name}"
        raise Rejected(Reason.OUT_OF_RANGE, detail)
    if wanted.kind == "i" and array.size:
        bounds = np.iinfo(wanted)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            detail = f"input {name[:100]!r} holds values beyond {wanted.name}"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
    with np.errstate(over="ignore"):  # becomes infinity, which is refused by its name
        return array.astype(wanted)


def _texts(name: str, value: Any) -> Array:
    """Texts and encoded bytes in nested lists, as an array of bytes objects."""
    _kinds(name, value)  # they are not nested too deep
    array = np.array(_plain(name, value), dtype=object)
    if not all(type(one) is bytes for one in array.flat):
        detail = f"input {name[:100]!r} is no tensor: its lists differ in length"
        raise Rejected(Reason.OUT_OF_RANGE, detail)
    return array


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(name, one) for one in value]
    if isinstance(value, str):
        return value.encode()
    if not _is_encoded(value) or not isinstance(value[BASE64], str):
        detail = f'input {name[:100]!r} holds values that are no text and not {{"b64": "..."}}'
        raise Rejected(Reason.OUT_OF_RANGE, detail)
    try:
        return base64.b64decode(value[BASE64], validate=True)
    except (binascii.Error, ValueError) as error:
        detail = f"input {name[:100]!r} holds what is not base64: {error}"
        raise Rejected(Reason.UNDECODABLE, detail) from error
