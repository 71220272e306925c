"""
Loops over arrays as machine code, by Numba: in one pass what NumPy does in a dozen.

A function is compiled for the types that it declares when its module is first imported, and kept
in `__pycache__` until its file changes. Numba looks at no other file: what it calls, and constants,
belong into the same one. It holds the interpreter while it runs, so a call should take less than a
millisecond, unless it is `nogil`. Nothing is checked against the bounds of an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

from schemas.errors import Misconfigured

Function = TypeVar("Function", bound=Callable[..., Any])


def given(dtype: str, dimensions: int = 1) -> Any:
    """An array that is read, however it lies in memory."""
    return numba.types.Array(getattr(numba.types, dtype), dimensions, "A", readonly=True)


def filled(dtype: str, dimensions: int = 1) -> Any:
    """A contiguous array that is written to."""
    return numba.types.Array(getattr(numba.types, dtype), dimensions, "C")


def compiled(*arguments: Any, nogil: bool = False) -> Callable[[Function], Function]:
    """
    Compile a function for these arguments: arrays as `given` and `filled` tell, or names of types.

    Args:
        nogil: give the interpreter to other threads meanwhile, which is not worth it for less than
            hundreds of microseconds: it has to be waited for afterwards.

    Other types are a TypeError: a version for them would be compiled while users wait.

    Raises:
        Misconfigured: there is no folder to keep it in.
    """
    wanted = [getattr(numba.types, one) if isinstance(one, str) else one for one in arguments]

    def compile_it(function: Function) -> Function:
        try:
            made: Function = numba.njit(tuple(wanted), cache=True, nogil=nogil)(function)
        except RuntimeError as error:
            raise Misconfigured(
                f"compiled code is kept beside its module or in the user's cache, and neither can "
                f"be written to ({error}): set NUMBA_CACHE_DIR to a folder that can"
            ) from error
        return made

    return compile_it
