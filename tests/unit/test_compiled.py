"""What is compiled takes the types that it declares, and only them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.compiled import compiled, filled, given
from schemas.errors import Misconfigured


@compiled(given("int64"), filled("int64"))
def doubled(values: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    for i in range(len(values)):
        out[i] = 2 * values[i]


def test_what_is_read_may_lie_in_memory_as_it_likes_and_be_read_only() -> None:
    out = np.zeros(3, np.int64)
    for values in (np.arange(3), np.arange(6)[::2], np.broadcast_to(4, 3)):
        doubled(values, out)
        assert out.tolist() == (2 * values).tolist()


@pytest.mark.parametrize(
    ("values", "out"),
    [
        (np.zeros(3, np.int32), np.zeros(3, np.int64)),
        (np.zeros((3, 1), np.int64), np.zeros(3, np.int64)),
        (np.zeros(3, np.int64), np.zeros(6, np.int64)[::2]),
        (np.zeros(3, np.int64), np.broadcast_to(np.int64(0), 3)),
        ([1, 2, 3], np.zeros(3, np.int64)),
    ],
)
def test_other_types_are_refused(values: object, out: object) -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        doubled(values, out)  # type: ignore[arg-type]


def test_without_a_folder_to_keep_it_in_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(*_: object) -> object:
        raise RuntimeError("cannot cache function 'one': no locator available")

    monkeypatch.setattr(numba, "njit", lambda *_, **__: nowhere)
    with pytest.raises(Misconfigured, match=r"'one'.* set NUMBA_CACHE_DIR to a folder that can"):
        compiled("int64")(len)


def test_the_next_process_finds_it_compiled(tmp_path: Path) -> None:
    module = tmp_path / "kernel.py"
    module.write_text(
        "from schemas.compiled import compiled\n\n\n"
        '@compiled("int64")\ndef more(value):\n    return value + 1\n'
    )
    program = "import kernel; print(kernel.more(1), sum(kernel.more.stats.cache_hits.values()))"
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert told == [["2", "0"], ["2", "1"]]
