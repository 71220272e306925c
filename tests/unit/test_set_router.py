"""Versions of two feature sets serve side by side, each with its own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from features.catalog import CATALOG
from features.declare import Array, FeatureSet, Level
from features.hashing import hash_ids
from inference.constant import ConstantModel
from inference.model import Model, ModelRef, TensorModel
from inference.rollout import in_canary
from inference.service import Service
from inference.set_router import SetRouter, SetServices
from inference.tensors import Signature
from schemas.errors import Refused
from schemas.events import Arm, Recommendation, Release, Status
from tests.feature_sets import OLD
from tests.serving import World, model, request

USERS = [f"user-{i}" for i in range(40)]
STABLE = Release(model_name="m", generation=1, stable=1, rollout_id="r")
CANARY = replace(STABLE, generation=2, canary=2, canary_share=4_000)
SHADOW = replace(STABLE, generation=2, shadow=2)
LATER = replace(STABLE, generation=3, stable=2, previous=1)


@dataclass
class Opened:
    """A set that was opened, and whether it was closed."""

    world: World
    closed: bool = False

    @property
    def service(self) -> Service:
        return self.world.service

    @property
    def beside(self) -> Service:
        return self.world.service

    def close(self) -> None:
        self.closed = True


@dataclass
class Sets:
    """The catalog's world, and worlds of other sets as they are opened."""

    own: World = field(default_factory=World)
    opened: dict[str, Opened] = field(default_factory=dict)
    fault: Exception | None = None

    def __post_init__(self) -> None:
        self.services = SetServices(Opened(self.own), self._open)
        self.router = SetRouter(self.services, self.own.live)
        for user in USERS:
            self.own.row(user, "item-1", next_offset=11)

    def _open(self, features: FeatureSet) -> Opened:
        if self.fault is not None:
            raise self.fault
        world = World(features=features, live=self.own.live, clock=self.own.clock)
        for user in USERS:
            world.row(user, "item-2", next_offset=22)
        self.opened[features.fingerprint] = Opened(world)
        return self.opened[features.fingerprint]

    def old(self, version: int = 1, best: tuple[str, ...] = ("item-40",)) -> Model:
        return self.services.kept_for(model(version, best, OLD), OLD)

    def new(self, version: int = 2, best: tuple[str, ...] = ("item-50",)) -> Model:
        return self.services.kept_for(model(version, best), CATALOG)

    def answer(self, users: Sequence[str] = USERS) -> tuple[Recommendation, ...]:
        asked = self.own.asked(*(request(user) for user in users))
        return self.router.answer(asked).answers


@pytest.fixture
def sets() -> Sets:
    return Sets()


def best(answer: Recommendation) -> str:
    return answer.items[0].item_id


def fits(answer: Recommendation, features: FeatureSet) -> bool:
    return (
        answer.fingerprint == features.fingerprint
        and len(answer.user_longs) == features.width(Level.USER, "int64")
        and len(answer.user_floats) == features.width(Level.USER, "float32")
        and all(len(i.floats) == features.width(Level.ITEM, "float32") for i in answer.items)
    )


def test_with_one_set_nothing_is_shared_out(sets: Sets) -> None:
    sets.own.deploy(LATER, sets.new())
    assert not sets.opened
    answers = sets.answer()
    assert {best(a) for a in answers} == {"item-50"}
    assert all(fits(a, CATALOG) and a.events_offset in {11, -1} for a in answers)


def test_a_stable_version_of_the_old_set_reads_the_old_rows(sets: Sets) -> None:
    sets.own.deploy(STABLE, sets.old())
    answers = sets.answer()
    assert {(best(a), a.status, a.events_offset) for a in answers} == {("item-40", Status.OK, 22)}
    assert all(fits(a, OLD) for a in answers)
    assert all("item-2" not in [i.item_id for i in a.items] for a in answers)  # seen there


def test_a_canary_of_the_new_set_serves_its_users_and_the_stable_version_the_others(
    sets: Sets,
) -> None:
    sets.own.deploy(CANARY, sets.old(), sets.new())
    answers = sets.answer()
    chosen = in_canary(CANARY, hash_ids(USERS)).tolist()
    assert 0 < sum(chosen) < len(USERS)
    assert [a.user_id for a in answers] == USERS
    for answer, canary in zip(answers, chosen, strict=True):
        assert (answer.arm, answer.model_version) == (
            (Arm.CANARY, 2) if canary else (Arm.STABLE, 1)
        )
        assert best(answer) == ("item-50" if canary else "item-40")
        assert fits(answer, CATALOG if canary else OLD)


def test_wrong_requests_are_told_so_wherever_they_fall(sets: Sets) -> None:
    sets.own.deploy(CANARY, sets.old(), sets.new())
    asked = sets.own.asked(
        *(request(user, k=0 if i % 3 == 0 else 5) for i, user in enumerate(USERS))
    )
    answers = sets.router.answer(asked).answers
    assert [a.user_id for a in answers] == USERS
    assert [a.status is Status.INVALID for a in answers] == [i % 3 == 0 for i in range(len(USERS))]


def test_a_canary_that_is_not_in_memory_leaves_its_users_with_the_stable_version(
    sets: Sets,
) -> None:
    sets.own.deploy(CANARY, sets.old())
    assert {(best(a), a.arm) for a in sets.answer()} == {("item-40", Arm.STABLE)}


def test_a_shadow_of_another_set_reads_its_own_rows(sets: Sets) -> None:
    sets.own.deploy(SHADOW, sets.old(), sets.new())
    for answer in sets.answer():
        assert (best(answer), fits(answer, OLD)) == ("item-40", True)
        assert answer.shadow is not None
        assert (answer.shadow.version, answer.shadow.item_ids[0]) == (2, "item-50")
        assert "item-1" not in answer.shadow.item_ids  # seen in the new set's row
        assert answer.shadow.error is None or answer.shadow.error == ""


@pytest.mark.parametrize("before", [STABLE, CANARY])
def test_a_swap_to_the_other_set_between_two_steps_is_noticed(sets: Sets, before: Release) -> None:
    old, new = sets.old(), sets.new()
    sets.own.deploy(before, old, new)
    prepared = sets.router.prepare(sets.own.asked(*map(request, USERS)))
    sets.own.deploy(LATER, old, new)
    answers = sets.router.finish(sets.router.score(prepared)).answers
    assert {(best(a), a.status, a.model_version) for a in answers} == {("item-50", Status.OK, 2)}
    assert all(fits(a, CATALOG) for a in answers)


def test_a_set_is_given_up_with_its_last_model(sets: Sets) -> None:
    first, second = sets.old(1), sets.old(3)
    (opened,) = sets.opened.values()
    first.close()
    first.close()
    assert not opened.closed
    second.close()
    assert opened.closed
    assert sets.services.serving().keys() == {CATALOG.fingerprint}
    sets.old(4)
    assert not sets.opened[OLD.fingerprint].closed
    sets.services.close()
    assert sets.opened[OLD.fingerprint].closed


def test_a_set_without_rows_is_refused_with_its_model(sets: Sets) -> None:
    sets.fault = Refused("no rows")
    with pytest.raises(Refused, match="no rows"):
        sets.old()
    assert sets.services.serving().keys() == {CATALOG.fingerprint}


def test_without_a_release_popular_items_are_answered(sets: Sets) -> None:
    assert {a.fallback_reason for a in sets.answer()} == {"no-model"}


class WithTensors(ConstantModel):
    """A model that takes tensors."""

    signatures: Mapping[str, Signature] = {"rank": Signature(inputs={}, outputs={})}

    def predict(self, signature: str, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        return {"rows": np.arange(rows)}


def test_a_model_of_another_set_takes_tensors_if_it_does_by_itself(sets: Sets) -> None:
    ref = ModelRef(name="m", version=1, fingerprint=OLD.fingerprint)
    able = WithTensors(ref, np.zeros(0, np.uint64), np.zeros(0, np.float32))
    kept = sets.services.kept_for(able, OLD)
    assert isinstance(kept, TensorModel)
    assert list(kept.signatures) == ["rank"]
    assert kept.predict("rank", {}, 2)["rows"].tolist() == [0, 1]
    assert not isinstance(sets.old(), TensorModel)
