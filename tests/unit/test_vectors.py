"""The index finds what comparing with every vector finds, whatever was put, replaced or hidden."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import vectors
from inference.exclusion import without
from inference.vectors import (
    RECALL_AIM,
    RECALL_AT,
    Nearest,
    Search,
    VectorIndex,
    Wanted,
    no_vectors,
)

WIDTH = 16


def clustered(count: int, seed: int = 1) -> np.ndarray:
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(60, WIDTH))
    found = centres[chance.integers(0, 60, count)] + 0.5 * chance.normal(size=(count, WIDTH))
    return found.astype(np.float32)


def brute(matrix: np.ndarray, allowed: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    scores = np.where(allowed, queries @ matrix.T, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def put(index: VectorIndex, matrix: np.ndarray, at: np.ndarray) -> VectorIndex:
    return index.put(at, matrix[at])


def searched(search: Search, queries: np.ndarray, k: int, out: Sequence[int] = ()) -> Nearest:
    """Every query leaves out `out`."""
    left_out = np.tile(np.array([*out, -1]), (len(queries), 1))
    return search(Wanted(queries=queries, k=k, left_out=left_out))


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inverted file already for hundreds of vectors."""
    monkeypatch.setattr(vectors, "EXACT_BELOW", 300)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 60),
    k=st.integers(1, 12),
    steps=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 99)), max_size=20),
    hidden=st.sets(st.integers(0, 59)),
    out=st.lists(st.integers(-1, 70), max_size=8),  # some are of no item that is there
)
def test_puts_in_any_order_find_what_comparing_all_finds(size, k, steps, hidden, out):
    matrix = clustered(size)
    index = put(no_vectors(WIDTH), matrix, np.arange(size))
    for at, seed in steps:
        if at < size:
            matrix = matrix.copy()
            matrix[at] = clustered(1, seed)[0]
            index = put(index, matrix, np.array([at]))
    allowed = np.array([at not in hidden for at in range(size)])
    wanted = allowed & ~np.isin(np.arange(size), out)
    queries = clustered(3, 7)
    found = searched(index.among(allowed), queries, k, out)
    assert found.at.shape == found.scores.shape == (3, k)
    there = min(k, int(wanted.sum()))
    assert (found.at[:, there:] == -1).all()
    assert np.isneginf(found.scores[:, there:]).all()
    expected = brute(matrix, wanted, queries, there)
    best = np.take_along_axis(queries @ matrix.T, expected, axis=1)
    assert found.scores[:, :there] == pytest.approx(best, abs=1e-4)


@pytest.mark.usefixtures("small_sizes")
def test_an_inverted_file_reaches_the_recall_it_was_made_for():
    matrix, queries = clustered(6_000), clustered(300, 3)
    index = put(no_vectors(WIDTH), matrix, np.arange(len(matrix)))
    assert index.due
    index = index.rebuilt(queries)
    assert not index.due
    assert index.recall >= RECALL_AIM
    assert 0 < index.probes < len(matrix) ** 0.5
    fresh = clustered(200, 4)
    everything = np.ones(len(matrix), bool)
    found = searched(index.among(everything), fresh, RECALL_AT).at
    expected = brute(matrix, everything, fresh, RECALL_AT)
    hit = [len(set(a) & set(b)) / RECALL_AT for a, b in zip(found, expected, strict=True)]
    assert np.mean(hit) > 0.985


@pytest.mark.usefixtures("small_sizes")
def test_what_is_hidden_or_replaced_is_not_found_in_the_inverted_file_any_more():
    matrix, queries = clustered(2_000), clustered(50, 3)
    index = put(no_vectors(WIDTH), matrix, np.arange(len(matrix))).rebuilt(queries)
    everything = np.ones(len(matrix) + 1, bool)
    best = searched(index.among(everything), queries, 1).at[:, 0]
    hidden = everything.copy()
    hidden[best] = False
    assert not np.isin(searched(index.among(hidden), queries, 20).at, best).any()
    # The best item of every query turns into one that nobody likes; a new one is all that counts.
    moved = np.concatenate([matrix, 100 * queries[:1]])
    gone = np.unique(best)
    moved[gone] = -100 * queries.mean(axis=0)
    index = put(index, moved, np.append(gone, len(matrix)))
    assert index.size == len(matrix) + 1
    found = searched(index.among(everything), queries[:1], 5)
    assert found.at[0, 0] == len(matrix)
    assert not np.isin(found.at, gone).any()
    out = found.at[0, :2].tolist()  # of those beside the file, and of those in it
    rest = searched(index.among(everything), queries[:1], 3, out)
    assert rest.at.tolist() == found.at[:, 2:].tolist()
    again = searched(index.rebuilt(queries).among(everything), queries[:1], 5)
    assert again.at[0, 0] == len(matrix)


@pytest.mark.usefixtures("small_sizes")
def test_an_index_is_made_anew_when_much_lies_beside_it():
    matrix = clustered(8_000)
    index = put(no_vectors(WIDTH), matrix, np.arange(7_000)).rebuilt(matrix[:50])
    assert not put(index, matrix, np.arange(7_000, 7_200)).due
    assert put(index, matrix, np.arange(7_000, 7_400)).due


@pytest.mark.usefixtures("small_sizes")
def test_queries_like_nothing_in_the_catalogue_are_compared_with_everything():
    chance = np.random.default_rng(1)
    matrix = chance.normal(size=(2_000, WIDTH)).astype(np.float32)  # no clusters at all
    queries = chance.normal(size=(50, WIDTH)).astype(np.float32)
    index = put(no_vectors(WIDTH), matrix, np.arange(len(matrix))).rebuilt(queries)
    assert index.recall >= RECALL_AIM
    tuned = index.tuned(matrix[:50])
    assert tuned.recall >= RECALL_AIM
    assert tuned.size == index.size


@settings(max_examples=100, deadline=None)
@given(
    found=st.lists(st.permutations(range(0, 90_000, 9_000)), min_size=1, max_size=4),
    left_out=st.lists(st.lists(st.integers(-1, 90_000), max_size=6), min_size=4, max_size=4),
    k=st.integers(1, 10),
    same_bits=st.booleans(),
)
def test_what_a_request_leaves_out_is_not_in_its_list(found, left_out, k, same_bits):
    at = np.array(found)
    scores = np.tile(np.linspace(1, 0, at.shape[1], dtype=np.float32), (len(at), 1))
    out = np.full((len(at), 8), -1)
    for row, places in enumerate(left_out[: len(at)]):
        out[row, : len(places)] = places
        out[row, 6] = at[row, 3]
        out[row, 7] = at[row, 2] + 2**13 if same_bits else -1  # another place, the same last bits
    best, best_scores = without(at, scores, out, k)
    for row in range(len(at)):
        left = [place for place in at[row].tolist() if place not in out[row].tolist()][:k]
        assert best[row].tolist() == left + [-1] * (k - len(left))
        assert np.isneginf(best_scores[row, len(left) :]).all()
