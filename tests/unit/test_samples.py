"""Sampled calls survive their file."""

from __future__ import annotations

import numpy as np
import pytest

from inference.samples import Call, read_calls, write_calls
from schemas.errors import Refused


def test_calls_come_back_in_order_with_their_types(tmp_path):
    calls = [
        Call(
            signature="serving_default",
            inputs={"k": np.int32(3), "exclude": np.array([[2**63 - 1]])},
            outputs={"scores": np.ones((1, 3), np.float32)},
        ),
        Call(signature="rank", inputs={"candidates": np.zeros((1, 0), np.int64)}),
    ]
    write_calls(tmp_path / "golden.npz", calls)
    found = read_calls(tmp_path / "golden.npz")
    assert [call.signature for call in found] == ["serving_default", "rank"]
    assert found[0].inputs["k"] == 3
    assert found[0].inputs["k"].dtype == np.int32
    assert found[0].outputs["scores"].dtype == np.float32
    assert found[1].inputs["candidates"].shape == (1, 0)
    assert found[1].outputs == {}


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_another_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "warmup.npz").write_bytes(content)
    with pytest.raises(Refused, match=r"warmup\.npz"):
        read_calls(tmp_path / "warmup.npz")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(Refused, match=r"warmup\.npz"):
        read_calls(tmp_path / "warmup.npz")
