"""Routing is sticky, nested, and salted by the rollout alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.rollout import ARMS, arms, in_canary
from schemas.events import Arm, Release

hashes = st.lists(st.integers(1, 2**64 - 1), max_size=50).map(lambda h: np.array(h, np.uint64))
shares = st.integers(0, 10_000)


def release(share: int, rollout_id: str = "r", generation: int = 1) -> Release:
    return Release(
        model_name="m",
        generation=generation,
        stable=1,
        canary=2,
        canary_share=share,
        rollout_id=rollout_id,
    )


@given(hashes, shares, shares)
def test_shares_nest(users, one, other):
    small, large = sorted((one, other))
    inner = in_canary(release(small), users)
    assert not (inner & ~in_canary(release(large), users)).any()


@given(hashes, shares)
def test_the_same_user_gets_the_same_arm_in_any_company_and_generation(users, share):
    together = arms(release(share), users)
    alone = [arms(release(share, generation=7), users[i : i + 1])[0] for i in range(len(users))]
    assert together.tolist() == alone


@given(hashes)
def test_nobody_at_0_and_everybody_at_10000_basis_points(users):
    assert not in_canary(release(0), users).any()
    assert in_canary(release(10_000), users).all()


@given(hashes)
def test_without_a_version_there_is_no_arm(users):
    chosen = arms(Release(model_name="m", generation=1, stable=0), users)
    assert all(ARMS[i] is Arm.NONE for i in chosen)


def test_a_share_holds_about_its_part_and_rollouts_are_independent():
    users = np.random.default_rng(1).integers(1, 2**63, 100_000).astype(np.uint64)
    one = in_canary(release(2000, "one"), users)
    two = in_canary(release(2000, "two"), users)
    assert abs(one.mean() - 0.2) < 0.01
    assert abs((one & two).mean() - 0.04) < 0.005
