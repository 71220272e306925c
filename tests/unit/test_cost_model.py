"""The line through the calls' times, learned while it moves."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.cost_model import CostModel

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def fed(model: CostModel, fixed_s: float, per_row_s: float, calls: int, seed: int = 1) -> CostModel:
    """Calls of all sizes, each a little slower than the line says, one in 25 ten times as slow."""
    chance = random.Random(seed)
    for _ in range(calls):
        rows = round(2 ** chance.uniform(0, 8))
        took_s = fixed_s + per_row_s * model.padded(rows)
        took_s *= 1 + 0.1 * abs(chance.gauss(0, 1))
        model.observe(rows, took_s * (10 if chance.random() < 0.04 else 1))
    return model


@given(st.floats(0.0001, 0.05), st.floats(0.000001, 0.001))
def test_it_finds_the_line_through_noise_and_outliers(fixed_s: float, per_row_s: float) -> None:
    model = fed(CostModel(SIZES), fixed_s, per_row_s, 300)
    for rows in (1, 30, 200):
        expected = fixed_s + per_row_s * model.padded(rows)
        assert model.predict(rows) == pytest.approx(1.08 * expected, rel=0.3)


@given(st.floats(0.2, 5))
def test_it_follows_a_model_that_became_faster_or_slower(factor: float) -> None:
    model = fed(CostModel(SIZES), 0.003, 0.0001, 200)
    fed(model, 0.003 * factor, 0.0001 * factor, 300, seed=2)
    expected = 1.08 * factor * (0.003 + 0.0001 * 256)
    assert model.predict(256) == pytest.approx(expected, rel=0.3)


def test_calls_of_one_size_only_still_give_that_size() -> None:
    model = CostModel(SIZES)
    for _ in range(5_000):
        model.observe(64, 0.01)
    assert model.predict(64) == pytest.approx(0.01, rel=0.02)
    assert 0 <= model.predict(1) < 1
    fed(model, 0.003, 0.0001, 300)
    assert model.predict(256) == pytest.approx(0.031, rel=0.3)


@pytest.mark.parametrize("sizes", [(1,), (16,), (1, 2), (4, 8)])
@pytest.mark.parametrize("calls", [600, 3_000])
def test_after_a_quiet_night_one_slow_call_moves_it_little_and_a_burst_is_expected(
    sizes: tuple[int, ...], calls: int
) -> None:
    model, chance = fed(CostModel(SIZES), 0.003, 0.00005, 200), random.Random(5)
    before_s = model.predict(256)
    for _ in range(calls):
        rows = chance.choice(sizes)
        model.observe(rows, (0.003 + 0.00005 * rows) * (1 + 0.05 * chance.gauss(0, 1)))
    usual_s = model.predict(sizes[0])
    assert model.predict(256) == pytest.approx(before_s, rel=0.5)
    model.observe(sizes[0], 0.2)
    assert model.predict(sizes[0]) == pytest.approx(usual_s, rel=0.3)
    assert model.predict(256) == pytest.approx(before_s, rel=0.5)


def test_one_slow_call_moves_it_little() -> None:
    model = fed(CostModel(SIZES), 0.003, 0.0001, 200)
    before = model.predict(64)
    model.observe(64, 2.0)
    assert model.predict(64) == pytest.approx(before, rel=0.25)


def test_rows_are_padded_and_large_calls_are_cut() -> None:
    model = CostModel(SIZES, first_s=0.004)
    assert [model.padded(n) for n in (0, 1, 3, 64, 65, 256, 257, 520)] == [
        *(0, 1, 4, 64, 128, 256, 257, 520)
    ]
    assert (model.predict(0), model.predict(1), model.predict(600)) == (0.0, 0.004, 0.012)
    assert (model.fixed_s, model.per_row_s) == (0.004, 0.0)


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 1)])
def test_sizes_must_ascend(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be at least 1 and ascend"):
        CostModel(sizes)
