"""Texts in arrays are the texts that were given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.texts import Texts

texts = st.lists(st.text(max_size=5), min_size=1, max_size=40)


@given(texts, st.data())
def test_texts_are_found_at_any_places(given_texts: list[str], data: st.DataObject) -> None:
    held = Texts()
    held.extend(given_texts)
    places = data.draw(st.lists(st.integers(0, len(given_texts) - 1)))
    found = held.at(np.array(places, np.int64))
    assert found == [given_texts[at] for at in places] == [held[at] for at in places]


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_place_without_a_text_is_named(wrong: int) -> None:
    held = Texts()
    held.extend(["a", "b"])
    with pytest.raises(IndexError, match=f"there is no text {wrong} among 2"):
        held.at(np.array([0, wrong]))
