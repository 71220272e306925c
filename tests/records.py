"""Hypothesis strategies for every record type, built from the dataclasses' own hints."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

INT32 = {"position", "partition", "k", "events_partition", "canary_share"}
FLOAT32 = {"score", "floats", "scores", "user_floats"}

_text = st.text(st.characters(codec="utf-8"), max_size=12)
_floats = {
    32: st.floats(width=32, allow_nan=False),
    64: st.floats(allow_nan=False),
}


def records(record_type: type) -> st.SearchStrategy[Any]:
    """Values of a record type, every field within its wire range."""
    hints = get_type_hints(record_type)
    return st.builds(
        record_type, **{f.name: _of(hints[f.name], f.name) for f in fields(record_type)}
    )


def _of(hint: Any, name: str) -> st.SearchStrategy[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return st.none() | _of(next(a for a in get_args(hint) if a is not types.NoneType), name)
    if get_origin(hint) is tuple:
        return st.lists(_of(get_args(hint)[0], name), max_size=3).map(tuple)
    if is_dataclass(hint) and isinstance(hint, type):
        return records(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    bits = 31 if name in INT32 else 63
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: _text,
        bytes: st.binary(max_size=12),
        bool: st.booleans(),
        int: st.integers(-(1 << bits), (1 << bits) - 1),
        float: _floats[32 if name in FLOAT32 else 64],
    }
    return plain[hint]
