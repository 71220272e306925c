"""Steps of a release, their signature and their log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference.release import (
    Step,
    Why,
    accepted,
    appended,
    first,
    promote,
    rollback,
    set_share,
    shadow,
    signed,
    start_canary,
    verify,
    verify_chain,
)
from inference.signature import Keyring, SigningKey
from schemas.errors import Refused
from schemas.events import Measure

WHY = Why(at_ms=5, reason="test")


def test_a_canary_runs_from_start_to_stable():
    release = first("m", 1, WHY)
    release = start_canary(shadow(release, 2, WHY), 2, 100, WHY)
    name = release.rollout_id
    assert (release.stable, release.canary, release.canary_share, release.shadow) == (1, 2, 100, 0)
    release = set_share(release, 2500, WHY)
    assert (release.canary_share, release.rollout_id) == (2500, name)
    release = promote(release, 2, WHY)
    assert (release.stable, release.previous, release.canary) == (2, 1, 0)
    assert release.generation == 5


def test_a_rollback_drops_the_canary_first():
    release = start_canary(promote(first("m", 1, WHY), 2, WHY), 3, 100, WHY)
    release = rollback(release, WHY)
    assert (release.stable, release.previous, release.canary) == (2, 1, 0)
    release = rollback(release, WHY)
    assert (release.stable, release.previous) == (1, 0)
    with pytest.raises(Refused, match="no previous version"):
        rollback(release, WHY)


def test_two_rollouts_of_one_version_have_two_names():
    one = start_canary(first("m", 1, WHY), 2, 100, WHY)
    two = start_canary(rollback(one, WHY), 2, 100, WHY)
    assert one.rollout_id != two.rollout_id


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda r: promote(r, 1, WHY), "stable already"),
        (lambda r: promote(r, 0, WHY), "not a version"),
        (lambda r: start_canary(r, 1, 100, WHY), "stable already"),
        (lambda r: start_canary(start_canary(r, 2, 1, WHY), 3, 1, WHY), "in canary already"),
        (lambda r: start_canary(r, 2, 10_001, WHY), "basis points, got 10001"),
        (lambda r: set_share(r, 100, WHY), "no canary"),
        (lambda r: shadow(r, 1, WHY), "serves already"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused(step, message):
    with pytest.raises(Refused, match=message):
        step(first("m", 1, WHY))


def test_a_step_is_unsigned_until_signed():
    key = SigningKey.generate()
    keys = Keyring([key.verify_key()])
    release = signed(first("m", 1, WHY), key)
    verify(release, keys, now_ms=0)
    with pytest.raises(Refused, match="unsigned"):
        verify(promote(release, 2, WHY), keys, now_ms=0)


@pytest.mark.parametrize(
    "changed", [{"stable": 9}, {"canary_share": 1}, {"profile": "demo"}, {"generation": 9}]
)
def test_any_altered_field_is_refused(changed):
    key = SigningKey.generate()
    release = signed(first("m", 1, WHY), key)
    with pytest.raises(Refused, match="does not match"):
        verify(replace(release, **changed), Keyring([key.verify_key()]), now_ms=0)


def test_a_generation_only_grows_unless_it_is_the_same_release():
    key = SigningKey.generate()
    keys = Keyring([key.verify_key()])
    one = signed(first("m", 1, WHY), key)
    two = signed(promote(one, 2, WHY), key)
    rival = signed(promote(one, 3, WHY), key)
    assert accepted(None, one, keys, 0) == one
    assert accepted(one, two, keys, 0) == two
    assert accepted(two, two, keys, 0) == two
    for old in (one, rival):
        with pytest.raises(Refused, match="does not follow generation 2"):
            accepted(two, old, keys, 0)
    with pytest.raises(Refused, match="this reader serves m"):
        accepted(one, signed(first("other", 1, WHY), key), keys, 0)


def chain(length: int):
    links, last = [], None
    for n in range(length):
        step = Step(
            model_name="m",
            from_state="GATED",
            to_state="CANARY",
            version=n,
            generation=n,
            at=n,
            reason="test",
            measures=(Measure(name="clicks", value=0.5),),
        )
        last = appended(last, step)
        links.append(last)
    return links


def test_a_whole_chain_verifies():
    links = chain(4)
    assert verify_chain(links) == links[-1]
    assert verify_chain([]) is None


def test_a_broken_chain_is_refused_where_it_breaks():
    links = chain(4)
    with pytest.raises(Refused, match="sequence 2: was altered"):
        verify_chain([links[0], replace(links[1], reason="other"), *links[2:]])
    with pytest.raises(Refused, match="sequence 3: expected sequence 2"):
        verify_chain([links[0], *links[2:]])
    forged = appended(links[0], Step(**{**step_of(links[1]), "reason": "other"}))
    with pytest.raises(Refused, match="sequence 3: does not follow"):
        verify_chain([links[0], forged, *links[2:]])
    with pytest.raises(Refused, match="sequence 2: expected sequence 1"):
        verify_chain(links[1:])


def step_of(link) -> dict:
    return {name: getattr(link, name) for name in Step.__slots__}
