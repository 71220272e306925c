"""
Sampled calls beside a model: `warmup.npz` (inputs to replay before serving) and `golden.npz`
(inputs with the outputs that the trainer saw, to be found again by the loader).

An array is stored as `<call>|<signature>|in|<name>` or `...|out|<name>`, calls numbered from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from features.declare import Array
from schemas.errors import Refused

WARMUP: Final = "warmup.npz"
GOLDEN: Final = "golden.npz"
RETRIEVE: Final = "serving_default"
RANK: Final = "rank"
# The two towers by themselves, for retrieval outside of the graph; a model may have both or none.
QUERY: Final = "query"  # packed user features -> `vector` [batch, d]
ITEMS: Final = "items"  # item features -> `vectors` [m, d]; a score is their dot product
ITEM: Final = "item"  # the item's hash, as the item tower takes it beside the item's features
USER_LONGS: Final = "user_longs"  # as `features.assemble` packs them
USER_FLOATS: Final = "user_floats"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one signature: arrays by the signature's own names."""

    signature: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array] = field(default_factory=dict)  # empty in a warm-up set


def write_calls(path: Path, calls: Sequence[Call]) -> None:
    """Store calls in the order given."""
    arrays = {
        f"{number}|{call.signature}|{way}|{name}": np.asarray(array)
        for number, call in enumerate(calls)
        for way, named in (("in", call.inputs), ("out", call.outputs))
        for name, array in named.items()
    }
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_calls(path: Path) -> list[Call]:
    """
    The calls of a file.

    Raises:
        Refused: it is not there or is not such a file.
    """
    found: dict[int, tuple[str, dict[str, dict[str, Array]]]] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for stored in arrays.files:
                number, signature, way, name = stored.split("|", 3)
                call = found.setdefault(int(number), (signature, {"in": {}, "out": {}}))
                call[1][way][name] = arrays[stored]
    except Exception as error:
        # zip, zlib and NumPy raise whatever a broken file provokes; all mean: not these calls.
        raise Refused(f"{path} cannot be read as sampled calls: {error}") from error
    return [
        Call(signature=signature, inputs=ways["in"], outputs=ways["out"])
        for _, (signature, ways) in sorted(found.items())
    ]
