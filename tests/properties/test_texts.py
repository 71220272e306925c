"""Texts in arrays are the texts that were given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.texts import Chosen, Texts

texts = st.lists(st.text(max_size=5), min_size=1, max_size=40)


@given(texts, st.data())
def test_texts_are_found_at_any_places(given_texts: list[str], data: st.DataObject) -> None:
    held = Texts()
    held.extend(given_texts)
    places = data.draw(st.lists(st.integers(0, len(given_texts) - 1)))
    found = held.at(np.array(places, np.int64))
    assert found == [given_texts[at] for at in places] == [held[at] for at in places]


@given(texts, st.data())
def test_chosen_texts_are_a_sequence_like_any(given_texts: list[str], data: st.DataObject) -> None:
    held = Texts()
    held.extend(given_texts)
    places = data.draw(st.lists(st.integers(0, len(given_texts) - 1)))
    start = data.draw(st.integers(0, len(places)))
    stop = data.draw(st.integers(start, len(places)))
    found = Chosen(held, np.array(places, np.int64)).part(start, stop)
    expected = [given_texts[at] for at in places[start:stop]]
    assert found.places.tolist() == places[start:stop]
    assert len(found) == len(expected)
    assert [*found] == [found[at] for at in range(len(found))] == found[:] == expected
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_place_without_a_text_is_named(wrong: int) -> None:
    held = Texts()
    held.extend(["a", "b"])
    with pytest.raises(IndexError, match=f"there is no text {wrong} among 2"):
        held.at(np.array([0, wrong]))
