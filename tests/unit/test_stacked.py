"""Columns of several batches as one's: what is written of them is the same."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.column_writer import Encoded, Ragged, Same, Some
from schemas.stacked import stacked


def test_values_that_differ_between_batches_become_one_a_record():
    found = stacked([{"a": Same(1)}, {"a": Same(2)}, {"a": np.array([3])}], [2, 1, 1])
    assert np.asarray(found["a"]).tolist() == [1, 1, 2, 3]
    assert stacked([{"a": Same(None)}, {"a": ["x"]}], [2, 1]) == {"a": [None, None, "x"]}


def test_arrays_keep_their_lengths():
    one = Ragged(np.array([0, 2, 2]), ["a", "b"])
    other = Ragged(np.array([0, 0, 1]), ["c"])
    found = stacked([{"a": one}, {"a": other}], [2, 2])["a"]
    assert isinstance(found, Ragged)
    assert (found.splits.tolist(), found.values) == ([0, 2, 2, 2, 3], ["a", "b", "c"])


def test_encoded_texts_stay_so_and_become_texts_beside_others():
    one = Encoded(np.frombuffer("añb".encode(), np.uint8), np.array([0, 3, 4]))
    other = Encoded(np.frombuffer(b"cd", np.uint8), np.array([0, 0, 2]))
    found = stacked([{"a": one}, {"a": other}], [2, 2])["a"]
    assert isinstance(found, Encoded)
    assert found.texts() == ["añ", "b", "", "cd"]
    assert stacked([{"a": one}, {"a": ["x"]}], [2, 1]) == {"a": ["añ", "b", "x"]}


def test_records_within_arrays_and_records_are_stacked_too():
    one = {"r": {"x": np.array([1.5])}, "a": Ragged(np.array([0, 1]), {"x": np.array([1])})}
    found = stacked([one, one], [1, 1])
    assert found["r"]["x"].tolist() == [1.5, 1.5]
    assert found["a"].splits.tolist() == [0, 1, 2]
    assert found["a"].values["x"].tolist() == [1, 1]


def test_where_nothing_is_there_nothing_is_given():
    some = Some(np.array([False, True]), {"x": ["a"]})
    found = stacked([{"s": Same(None)}, {"s": some}, {"s": Same(None)}], [1, 2, 2])["s"]
    assert isinstance(found, Some)
    assert found.present.tolist() == [False, False, True, False, False]
    assert found.values == {"x": ["a"]}


def test_batches_of_other_fields_do_not_fit():
    with pytest.raises(KeyError):
        stacked([{"a": Same(1)}, {"b": Same(1)}], [1, 1])
