"""What a start does before its imports."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from inference.early import YOUNG, collect_rarely

MAPPED = """
import sys, threading
from inference.early import map_tensorflow
map_tensorflow()
[thread.join() for thread in threading.enumerate() if thread.name == "map-tensorflow"]
print("tensorflow" in sys.modules, "libtensorflow_cc" in open("/proc/self/maps").read())
"""

LIMITED = """
import os, sys
from deploy.cli import build
from inference.early import limit_blas
build()
assert "numpy" not in sys.modules
limit_blas(1)
import numpy
numpy.ones((500, 500)) @ numpy.ones((500, 500))
print(len(os.listdir("/proc/self/task")))
"""


def said(code: str) -> list[str]:
    root = Path(__file__).parents[2]
    return subprocess.check_output(
        [sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=60
    ).split()


def test_the_search_for_garbage_is_put_off():
    before = gc.get_threshold()
    try:
        collect_rarely()
        assert gc.get_threshold() == (YOUNG, *before[1:])
    finally:
        gc.set_threshold(*before)


def test_the_library_is_mapped_and_tensorflow_not_imported():
    assert said(MAPPED) == ["False", "True"]


def test_numpy_multiplies_in_so_many_threads():
    assert said(LIMITED) == ["1"]
