"""Who is too late for a model, by what answers cost so far."""

from __future__ import annotations

import pytest

from inference.cost_model import TogetherCost
from inference.deadlines import TooLate
from inference.release import Why, first, shadow
from schemas.events import Status
from tests.serving import Constant, World, model, request

WHY = Why(at_ms=0, reason="test")


def test_an_answer_that_is_scored_in_time_and_delivered_late_is_too_late() -> None:
    world = World()
    cost = TogetherCost(Constant(0.010), Constant(0.020))
    assert cost.predict(3) == pytest.approx(0.030)
    asked = world.asked(
        request("a", deadline_ms=49), request("b", deadline_ms=51), request("c"), age_ms=20
    )
    assert TooLate(cost, world.clock).among(asked).tolist() == [True, False, False]
    assert TooLate(None, world.clock).among(asked).tolist() == [False] * 3


def test_a_slow_spell_in_which_nobody_gets_a_model_ends() -> None:
    world = World()
    late = TooLate(Constant(0.5), world.clock)

    def told() -> bool:
        (found,) = late.among(world.asked(request(deadline_ms=50))).tolist()
        return bool(found)

    assert told()
    world.clock.advance(0.9)
    assert told()
    world.clock.advance(0.2)
    assert not told()  # this one finds out
    assert told()
    late.among(world.asked(request()))
    world.clock.advance(0.9)
    late.among(world.asked(request()))
    world.clock.advance(0.9)
    assert told()  # others got a model meanwhile: its cost is known


def test_where_all_are_too_late_no_model_is_asked_and_no_cost_is_learnt() -> None:
    world = World(call_s=0.1)
    world.deploy(shadow(first("m", 1, WHY), 2, WHY), model(1), model(2))
    service = world.service
    scored = service.score(service.prepare(world.asked(request(deadline_ms=50))))
    (answer,) = service.finish(scored).answers
    assert (answer.status, answer.fallback_reason) == (Status.FALLBACK, "deadline")
    assert answer.shadow is None
    assert service.modelled(scored) == 0
    some = service.score(service.prepare(world.asked(request(deadline_ms=50), request("bob"))))
    assert service.modelled(some) == 1
