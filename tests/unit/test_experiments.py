"""Who takes part in which experiment, what they get, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.hashing import hash_ids
from inference.constant import ConstantModel
from inference.experiment_report import attributed, mismatch_p, preferred, report
from inference.experiments import (
    INTERLEAVED,
    NOT_IN_IT,
    assign,
    coins,
    compared,
    drafted,
    problem_of,
)
from inference.live import Deployment
from inference.model import ModelRef
from inference.release import (
    Why,
    first,
    promote,
    rollback,
    signed,
    start_canary,
    start_experiment,
    stop_experiment,
    verify,
)
from inference.reload import Load, Serving, Swap, actions
from inference.rollout import in_canary
from inference.routing import routes
from inference.scorer import Pick
from inference.signature import Keyring, SigningKey
from schemas.errors import Refused
from schemas.events import Arm, Experiment, ExperimentArm, Recommendation
from tests.serving import ITEMS, World, model, request

WHY = Why(at_ms=7, reason="test")
ONE = first("m", 1, WHY)
USERS = hash_ids([f"user-{i}" for i in range(20_000)])
AB = Experiment(
    name="deeper",
    arms=(ExperimentArm(name="control", version=1), ExperimentArm(name="deep", version=2)),
)
DRAFT = replace(AB, name="draft", interleaved=True)


# --- who takes part ------------------------------------------------------------------------------


def test_users_are_split_by_the_weights_and_stay_where_they_are() -> None:
    arms = (*AB.arms, ExperimentArm(name="third", version=3, weight=2))
    found = assign(replace(AB, arms=arms), USERS)
    assert np.bincount(found) / len(USERS) == pytest.approx([0.25, 0.25, 0.5], abs=0.02)
    assert (assign(replace(AB, arms=arms), USERS[::-1])[::-1] == found).all()


def test_a_larger_share_keeps_those_who_took_part_in_their_arms() -> None:
    few, many = assign(replace(AB, share=500), USERS), assign(replace(AB, share=3_000), USERS)
    assert (few != NOT_IN_IT).mean() == pytest.approx(0.05, abs=0.01)
    assert (many != NOT_IN_IT).mean() == pytest.approx(0.3, abs=0.02)
    assert (many[few != NOT_IN_IT] == few[few != NOT_IN_IT]).all()


def test_a_place_in_one_experiment_says_nothing_about_another_or_about_a_rollout() -> None:
    one, two = assign(AB, USERS), assign(replace(AB, name="other"), USERS)
    canary = in_canary(start_canary(ONE, 2, 5_000, WHY), USERS)
    taking_part = assign(replace(AB, share=5_000), USERS) != NOT_IN_IT
    for other in (two == 1, canary, taking_part):
        assert np.corrcoef(one == 1, other)[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": " "}, "the name is empty"),
        ({"arms": AB.arms[:1]}, "at least two arms are compared, got 1"),
        ({"arms": (AB.arms[0], AB.arms[0])}, "two arms of one name among control, control"),
        ({"arms": (AB.arms[0], replace(AB.arms[1], weight=0))}, "weight of arm 'deep' must be"),
        ({"arms": (AB.arms[0], replace(AB.arms[1], version=0))}, "0 is not a version"),
        ({"arms": (AB.arms[0], replace(AB.arms[1], name="interleaved:x"))}, "begins with"),
        ({"share": 0}, "a share is 1 to 10000 basis points, got 0"),
        (
            {"interleaved": True, "arms": (*AB.arms, ExperimentArm(name="c", version=3))},
            "two versions are interleaved, got 3",
        ),
        (
            {"interleaved": True, "arms": (AB.arms[0], replace(AB.arms[1], version=1))},
            "both arms are one version",
        ),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(changed, told) -> None:
    with pytest.raises(Refused, match=told):
        start_experiment(ONE, replace(AB, **changed), WHY)


# --- its place in a release ----------------------------------------------------------------------


def test_an_experiment_runs_until_it_is_stopped_or_the_stable_version_changes() -> None:
    release = start_experiment(ONE, AB, WHY)
    assert release.experiments == (replace(AB, started_at=7),)
    assert compared(release) == (1, 2)
    with pytest.raises(Refused, match="runs already"):
        start_experiment(release, AB, WHY)
    both = start_experiment(release, DRAFT, WHY)
    assert [one.name for one in stop_experiment(both, "deeper", WHY).experiments] == ["draft"]
    with pytest.raises(Refused, match="no experiment 'x' runs; running: deeper, draft"):
        stop_experiment(both, "x", WHY)
    assert len(start_canary(both, 3, 100, WHY).experiments) == 2
    assert len(rollback(start_canary(both, 3, 100, WHY), WHY).experiments) == 2
    assert promote(both, 2, WHY).experiments == ()
    later = start_experiment(promote(ONE, 2, WHY), AB, WHY)
    assert rollback(later, WHY).experiments == ()


def test_experiments_are_signed_and_releases_of_before_still_verify() -> None:
    key = SigningKey.generate()
    keys = Keyring([key.verify_key()])
    release = signed(start_experiment(ONE, AB, WHY), key)
    verify(release, keys, now_ms=0)
    with pytest.raises(Refused, match="does not match"):
        verify(replace(release, experiments=()), keys, now_ms=0)
    with pytest.raises(Refused, match="does not match"):
        verify(replace(release, experiments=(replace(AB, share=1),)), keys, now_ms=0)
    # As it was signed before there were experiments: the field is not among the bytes.
    from inference.release import KIND
    from inference.signature import canonical

    fields = {n: getattr(ONE, n) for n in ONE.__slots__ if n not in ("signature", "experiments")}
    fields["key_id"] = key.key_id
    old = replace(ONE, key_id=key.key_id, signature=key.sign(KIND, canonical(fields)))
    verify(old, keys, now_ms=0)


def test_versions_of_experiments_are_loaded_before_the_release_serves() -> None:
    release = start_experiment(ONE, AB, WHY)
    old = Serving(release=ONE, versions=frozenset({1}))
    assert actions(release, old, {1}, ()) == (Load(2),)
    assert actions(release, old, {1, 2}, ()) == (Swap(release, frozenset({1, 2})),)
    # One that must not serve holds up nobody.
    assert actions(release, old, {1}, {2}) == (Swap(release, frozenset({1})),)


# --- routes --------------------------------------------------------------------------------------


def deployment(release, *versions: int) -> Deployment:
    return Deployment(release=release, models={v: model(version=v) for v in versions})


def shares(found: Deployment, late=None) -> dict:
    late = np.zeros(len(USERS), bool) if late is None else late
    told = {}
    for route in routes(found, USERS, late):
        name = route.experiment.name if route.experiment else ""
        versions = tuple(m.ref.version for m in route.models)
        told[name, route.arm_name, versions, route.arm] = set(route.index.tolist())
    return told


def test_everybody_gets_one_route_and_canary_users_no_experiment() -> None:
    release = start_experiment(start_canary(ONE, 3, 2_000, WHY), replace(AB, share=4_000), WHY)
    release = start_experiment(release, replace(DRAFT, share=5_000), WHY)
    told = shares(deployment(release, 1, 2, 3))
    everybody = [i for of in told.values() for i in of]
    assert sorted(everybody) == list(range(len(USERS)))
    size = {key: len(of) / len(USERS) for key, of in told.items()}
    assert size["", "", (3,), Arm.CANARY] == pytest.approx(0.2, abs=0.02)
    assert size["deeper", "control", (1,), Arm.STABLE] == pytest.approx(0.8 * 0.2, abs=0.02)
    assert size["deeper", "deep", (2,), Arm.NONE] == pytest.approx(0.8 * 0.2, abs=0.02)
    assert size["draft", "", (1, 2), Arm.NONE] == pytest.approx(0.8 * 0.6 * 0.5, abs=0.02)


def test_an_experiment_whose_version_is_missing_does_not_run() -> None:
    release = start_experiment(ONE, AB, WHY)
    assert list(shares(deployment(release, 1))) == [("", "", (1,), Arm.STABLE)]
    assert shares(deployment(release)) == {}


def test_who_would_be_answered_too_late_takes_no_part() -> None:
    late = np.arange(len(USERS)) % 2 == 0
    told = shares(deployment(start_experiment(ONE, AB, WHY), 1, 2), late)
    assert sorted(i for of in told.values() for i in of) == np.flatnonzero(~late).tolist()


# --- team draft ----------------------------------------------------------------------------------


def pick(names: str) -> Pick:
    return Pick(
        ids=tuple(names),
        hashes=hash_ids(list(names)),
        scores=np.arange(len(names), 0, -1, np.float32),
    )


@settings(max_examples=150, deadline=None)
@given(
    a=st.permutations("abcdefgh").map("".join),
    b=st.permutations("efghijkl").map("".join),
    cut=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    k=st.integers(1, 12),
    seed=st.integers(0, 1_000),
)
def test_a_drafted_list_has_each_item_once_from_the_team_that_drafted_it(a, b, cut, k, seed):
    a, b = a[: cut[0]], b[: cut[1]]
    first_team = np.random.default_rng(seed).integers(0, 2, k).astype(np.uint8)
    found, teams = drafted(pick(a), pick(b), k, first_team)
    ids = "".join(found.ids)
    assert len(ids) == len(teams) == len(found.scores) == min(k, len(set(a) | set(b)))
    assert len(set(ids)) == len(ids)
    assert (found.hashes == hash_ids(list(ids))).all()
    # Each team drafts in the order of its own list.
    for team, own in (("0", a), ("1", b)):
        mine = [item for item, of in zip(ids, teams, strict=True) if of == team]
        assert mine == sorted(mine, key=own.index)
    # Nobody is ahead by more than one while both have items left.
    if len(a) == len(b) == 8:
        for stop in range(min(k, 8)):
            assert abs(teams[:stop].count("0") - teams[:stop].count("1")) <= 1


def test_of_two_equal_lists_comes_that_list() -> None:
    found, teams = drafted(pick("abcd"), pick("abcd"), 4, np.array([1, 0, 1, 0], np.uint8))
    assert "".join(found.ids) == "abcd"
    assert teams == "1001"


def test_neither_team_is_favoured_and_a_repeated_request_gets_the_same_list() -> None:
    requests = hash_ids([f"r{i}" for i in range(5_000)])
    flips = coins(DRAFT, requests, 70)
    assert flips.shape == (5_000, 70)
    assert flips.mean(axis=0) == pytest.approx(0.5, abs=0.03)
    assert (coins(DRAFT, requests, 10) == flips[:, :10]).all()
    assert np.corrcoef(flips[:, 0], flips[:, 65])[0, 1] == pytest.approx(0, abs=0.05)


# --- served --------------------------------------------------------------------------------------


def backwards(version: int) -> ConstantModel:
    ref = ModelRef(name="m", version=version, fingerprint=model().ref.fingerprint)
    return ConstantModel(ref, hash_ids(ITEMS[::-1]), np.arange(len(ITEMS), 0, -1, np.float32))


def answered(experiment: Experiment, count: int = 200) -> tuple[World, list[Recommendation]]:
    world = World()
    world.deploy(start_experiment(ONE, experiment, WHY), model(version=1), backwards(2))
    return world, world.answer(*(request(f"user-{i}", k=6) for i in range(count)))


def test_answers_tell_the_arm_and_come_from_its_version() -> None:
    world, answers = answered(AB)
    arms = [one.experiments[0].value for one in answers]
    assert {one.experiments[0].name for one in answers} == {"deeper"}
    for one, arm in zip(answers, arms, strict=True):
        assert one.model_version == {"control": 1, "deep": 2}[arm]
        assert one.arm is (Arm.STABLE if arm == "control" else Arm.NONE)
        assert one.items[0].item_id == (ITEMS[0] if arm == "control" else ITEMS[-1])
    expected = assign(AB, hash_ids([one.user_id for one in answers]))
    assert [AB.arms[i].name for i in expected] == arms
    told = world.metrics.value("serve.experiment_requests", experiment="deeper", arm="deep")
    assert told == arms.count("deep")


def test_interleaved_answers_tell_the_team_of_each_item() -> None:
    _, answers = answered(DRAFT)
    for one in answers:
        teams = one.experiments[0].value.removeprefix(INTERLEAVED)
        assert len(teams) == len(one.items) == 6
        for item, team in zip(one.items, teams, strict=True):
            assert item.item_id in (ITEMS[:6], ITEMS[-6:])[int(team)]
        assert teams.count("0") == 3
        assert (one.model_name, one.model_version, one.arm) == ("m", 0, Arm.NONE)
    firsts = [one.experiments[0].value[len(INTERLEAVED)] for one in answers]
    assert 60 < firsts.count("0") < 140


# --- what it says --------------------------------------------------------------------------------


def shown(rows: list[tuple[str, str, list[str], int]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={"user": pl.String, "arm": pl.String, "items": pl.List(pl.String), "time": pl.Int64},
        orient="row",
    )


def chosen(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={"user": pl.String, "item": pl.String, "time": pl.Int64}, orient="row"
    )


def test_a_choice_goes_to_the_newest_list_that_showed_it_within_the_window() -> None:
    lists = shown([("u", "x", ["a", "b"], 100), ("u", "y", ["b"], 200), ("v", "x", ["a"], 100)])
    events = chosen([("u", "b", 150), ("u", "b", 250), ("u", "a", 140), ("u", "a", 900)])
    found = attributed(lists, events, 300).sort("time")
    assert found.select("list", "place", "time").rows() == [(0, 0, 140), (0, 1, 150), (1, 0, 250)]
    assert attributed(lists, chosen([("u", "a", 99), ("w", "a", 150)]), 300).is_empty()


def test_rates_are_over_lists_and_their_errors_over_users() -> None:
    # Two users an arm: 1 of 1 and 0 of 3 lists; 2 of 2 and 1 of 2.
    rows = [("a", "control", 1), ("b", "control", 3), ("c", "deep", 2), ("d", "deep", 2)]
    lists = shown([(u, arm, ["i"], 10 * n) for u, arm, count in rows for n in range(count)])
    events = chosen([("a", "i", 1), ("c", "i", 1), ("c", "i", 11), ("d", "i", 1)])
    found = report(AB, lists, attributed(lists, events, 5))
    control, deep = found.arms
    assert (control.users, control.lists, control.chosen, control.rate) == (2, 4, 1, 0.25)
    assert (deep.users, deep.lists, deep.chosen, deep.rate) == (2, 4, 3, 0.75)
    # By hand: left over (0.75, -0.75) and (0.5, -0.5); errors sqrt(2 * sum of squares) / 4.
    error = ((2 * 1.125) ** 0.5 / 4, (2 * 0.5) ** 0.5 / 4)
    assert deep.difference == pytest.approx(0.5)
    assert deep.high - deep.difference == pytest.approx(1.95996 * np.hypot(*error), rel=1e-4)
    assert found.trusted


def simulated(
    seed: int, users: int, rates: tuple[float, float], lost: float = 0.0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Lists and choices of users who differ in how much they choose; some of "deep" are lost."""
    chance = np.random.default_rng(seed)
    rows, events = [], []
    for user in range(users):
        arm = int(chance.integers(2))
        if arm and chance.random() < lost:
            continue
        own = min(1.0, rates[arm] * chance.gamma(2.0) / 2)
        for n in range(int(chance.integers(1, 8))):
            rows.append((f"u{user}", AB.arms[arm].name, ["i"], 100 * n))
            if chance.random() < own:
                events.append((f"u{user}", "i", 100 * n + 1))
    lists = shown(rows)
    return lists, attributed(lists, chosen(events), 50)


def test_without_a_difference_few_reports_find_one_and_a_difference_is_found() -> None:
    ps = [report(AB, *simulated(seed, 300, (0.2, 0.2))).arms[1].p for seed in range(100)]
    assert sum(p < 0.05 for p in ps) <= 12
    assert 0.3 < np.mean(ps) < 0.7
    better = report(AB, *simulated(1, 4_000, (0.2, 0.25))).arms[1]
    assert better.p < 0.01
    assert better.low < 0.04 < better.high


def test_users_lost_in_one_arm_are_a_mismatch() -> None:
    assert report(AB, *simulated(1, 6_000, (0.2, 0.2))).trusted
    assert not report(AB, *simulated(1, 6_000, (0.2, 0.2), lost=0.1)).trusted
    assert mismatch_p([], []) == 1.0


def test_each_user_votes_once_for_the_team_they_chose_more_of() -> None:
    lists = shown(
        [
            ("u", "interleaved:01", ["a", "b"], 0),
            ("v", "interleaved:10", ["a", "b"], 0),
            ("w", "interleaved:01", ["a", "b"], 0),
        ]
    )
    events = [("u", "b", 1), ("u", "b", 2), ("u", "a", 3), ("v", "a", 1), ("w", "a", 1)]
    events += [("w", "b", 1)]
    found = preferred(lists, attributed(lists, chosen(events), 50))
    assert (found.first, found.second, found.ties) == (0, 2, 1)
    assert found.share == pytest.approx(5 / 6)
    assert found.p == pytest.approx(0.5)
    nobody = preferred(lists, attributed(lists, chosen([]), 50))
    assert (nobody.share, nobody.p) == (0.5, 1.0)


def test_no_problem_is_found_with_what_makes_sense() -> None:
    assert problem_of(AB) == problem_of(DRAFT) == ""
