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


def test_the_search_for_garbage_is_put_off():
    before = gc.get_threshold()
    try:
        collect_rarely()
        assert gc.get_threshold() == (YOUNG, *before[1:])
    finally:
        gc.set_threshold(*before)


def test_the_library_is_mapped_and_tensorflow_not_imported():
    root = Path(__file__).parents[2]
    said = subprocess.check_output(
        [sys.executable, "-c", MAPPED], cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=60
    )
    assert said.split() == ["False", "True"]
