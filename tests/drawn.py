"""Tensors that hypothesis draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

DTYPES = ("int64", "int32", "float32")  # of numbers that models take


def numbers(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Finite ones of the whole range."""
    elements = (
        st.floats(width=32, allow_nan=False, allow_infinity=False)
        if dtype == "float32"
        else st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max)
    )
    return arrays.arrays(dtype, shape, elements=elements)
