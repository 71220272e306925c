"""Metrics against their definitions written out one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retrain import ranking


def by_hand(row: list[int], chosen: set[int]) -> tuple[float, float, float]:
    places = [place for place, item in enumerate(row) if item in chosen]
    gain = sum(1 / math.log2(place + 2) for place in places)
    best = sum(1 / math.log2(place + 2) for place in range(min(len(chosen), len(row))))
    return float(bool(places)), gain / best, 1 / (places[0] + 1) if places else 0.0


def test_ranking_metrics_equal_their_definitions() -> None:
    random = np.random.default_rng(1)
    lists = np.array([random.permutation(30)[:10] + 1 for _ in range(200)], np.uint64)
    chosen = [set((random.permutation(30)[: random.integers(1, 14)] + 1).tolist()) for _ in lists]
    row = np.repeat(np.arange(200), [len(c) for c in chosen])
    item = np.array([i for c in chosen for i in sorted(c)], np.uint64)
    relevant = ranking.relevance(lists, row, item)
    found = np.stack(
        [
            ranking.hit_rate(relevant),
            ranking.ndcg(relevant, np.bincount(row, minlength=200)),
            ranking.reciprocal_rank(relevant),
        ],
        axis=1,
    )
    expected = [by_hand(one.tolist(), c) for one, c in zip(lists, chosen, strict=True)]
    assert found == pytest.approx(np.array(expected))


def test_a_padded_place_is_never_relevant() -> None:
    lists = np.zeros((1, 3), np.uint64)
    assert not ranking.relevance(lists, np.array([0]), np.array([0], np.uint64)).any()


def test_auc_equals_the_share_of_ordered_pairs() -> None:
    random = np.random.default_rng(2)
    scores, positive = random.integers(0, 8, 300), random.random(300) < 0.3
    gap = scores[positive][:, None] - scores[~positive][None, :]
    assert ranking.auc(scores, positive) == pytest.approx(np.mean((gap > 0) + 0.5 * (gap == 0)))


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        found = ranking.bootstrap_mean(random.exponential(1, 80), random, rounds=400)
        covered += found.low <= 1 <= found.high
    assert 175 <= covered <= 199


def test_the_bootstrap_is_the_same_for_the_same_generator() -> None:
    values = np.random.default_rng(4).normal(size=500)
    one, other = (ranking.bootstrap_mean(values, np.random.default_rng(5)) for _ in range(2))
    assert one == other


def test_a_heavy_user_counts_once() -> None:
    users = np.array([1] * 98 + [2, 3], np.uint64)
    _, means, counts = ranking.user_means(users, np.array([1.0] * 98 + [0.0, 0.0]))
    assert means.mean() == pytest.approx(1 / 3)
    assert counts.tolist() == [98, 1, 1]
