"""What a start of `millstream serve` does before it imports anything, which takes seconds."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Final

# New objects before the search for garbage begins. A batch makes thousands, which live until its
# answers are out: searched every 700, they grow old, and then all that is old is searched too.
YOUNG: Final = 50_000
_LIBRARIES: Final = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")


def model_threads(wanted: int) -> int:
    """Of one model call; 0: half of the processors: the rest of serving, and others, need some."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // 2)


def limit_blas(threads: int) -> None:
    """Of NumPy, which reads it when it is imported: its threads would spin until the next call."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))  # noqa: TID251


def collect_rarely() -> None:
    """Search for garbage less often; imports make much that stays."""
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


def map_tensorflow() -> None:
    """
    Map TensorFlow's library (1 GB, half a second of relocations) beside the imports.

    It is a matter of time alone: where the library is missing or called otherwise, the import of
    TensorFlow says so later, or finds it.
    """
    threading.Thread(target=_map, name="map-tensorflow", daemon=True).start()


def _map() -> None:
    found = find_spec("tensorflow")  # does not import it
    # Called as a function of the C library, dlopen does not hold the interpreter's lock.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for folder in (found.submodule_search_locations if found else None) or ():
        for name in _LIBRARIES:
            dlopen(os.fsencode(Path(folder) / name), os.RTLD_NOW | os.RTLD_LOCAL)
