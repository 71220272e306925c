"""The core of serving: one answer each, soft at every step."""

from __future__ import annotations

from dataclasses import asdict

import msgspec
import numpy as np
import pytest

from features.catalog import CATALOG
from features.declare import Level
from features.hashing import hash_ids
from features.store import Update
from inference.encoding import AnswerWriter
from inference.release import Why, first, shadow, start_canary
from inference.rollout import in_canary
from inference.rules import Only
from inference.scorer import ScorePolicy
from inference.service import ServicePolicy
from inference.told import RecommendAnswer, told
from schemas.codec import Codec
from schemas.column_writer import Encoded
from schemas.errors import ModelFault, Reason, Rejected
from schemas.events import Arm, Item, Offset, Recommendation, Status
from schemas.registry import MemoryRegistry
from tests.serving import ITEMS, World, model, place, request

WHY = Why(at_ms=0, reason="test")
ONE = first("m", 1, WHY)


@pytest.fixture
def world() -> World:
    world = World()
    world.deploy(ONE, model())
    return world


def ids(answer) -> list[str]:
    return [item.item_id for item in answer.items]


class Faulty:
    """A model that fails on whatever a test says."""

    def __init__(self, inner, error=None, when=lambda users: True) -> None:
        error = error or ModelFault("NaN")
        self.inner, self.error, self.when, self.calls = inner, error, when, 0

    @property
    def ref(self):
        return self.inner.ref

    def retrieve(self, users, exclude, k):
        self.calls += 1
        if self.when(users):
            raise self.error
        return self.inner.retrieve(users, exclude, k)

    def rank(self, users, candidates, items):
        self.calls += 1
        if self.when(users):
            raise self.error
        return self.inner.rank(users, candidates, items)

    def close(self) -> None:
        self.inner.close()


def test_an_answer_carries_its_lineage_and_the_features_as_served(world):
    world.row("ann", "item-50", next_offset=7, age_ms=1500)
    (answer,) = world.answer(request(surface="home"), age_ms=3)
    assert answer.status is Status.OK
    assert ids(answer) == ITEMS[:5]
    assert (answer.model_name, answer.model_version, answer.arm) == ("m", 1, Arm.STABLE)
    assert (answer.events_partition, answer.events_offset) == (place("ann"), 7)
    assert answer.fingerprint == CATALOG.fingerprint
    assert answer.row_age_ms == 1497
    assert answer.surface == "home"
    assert answer.latency_us.queue == 3000
    assert len(answer.user_longs) == CATALOG.width(Level.USER, "int64")
    assert len(answer.user_floats) == CATALOG.width(Level.USER, "float32")
    for item in answer.items:
        assert len(item.longs) == CATALOG.width(Level.ITEM, "int64")
        assert len(item.floats) == CATALOG.width(Level.ITEM, "float32")
    assert [s.score for s in answer.items] == sorted((s.score for s in answer.items), reverse=True)


def test_an_answer_is_the_same_alone_and_among_others(world):
    users = [f"user-{i}" for i in range(20)]
    for i, user in enumerate(users):
        world.row(user, *ITEMS[i : i + 3])
    requests = [request(user, k=1 + i) for i, user in enumerate(users)]
    together = world.answer(*requests)
    for asked, answer in zip(requests, together, strict=True):
        (alone,) = world.answer(asked)
        assert (alone.items, alone.user_longs) == (answer.items, answer.user_longs)
        assert len(alone.items) == asked.k


def test_seen_and_excluded_items_are_left_out(world):
    world.row("ann", "item-0", "item-2")
    (answer,) = world.answer(request(exclude=("item-1",)))
    assert ids(answer) == ["item-3", "item-4", "item-5", "item-6", "item-7"]


def test_an_unknown_user_is_answered_on_default_features(world):
    (answer,) = world.answer(request("nobody"))
    assert (answer.status, answer.row_age_ms, answer.events_offset) == (Status.OK, -1, 0)
    assert world.metrics.value("serve.rows_missing") == 1


def test_unavailable_and_unknown_items_are_not_recommended(world):
    world.items.put_items([Item(item_id="item-0", title="gone", available=False)])
    world.deploy(ONE, model(best=("item-9999",)))
    (answer,) = world.answer(request())
    assert ids(answer) == ITEMS[1:6]


def test_business_rules_hold_for_the_model_and_for_popular_items_but_not_for_given_candidates():
    blocked = Only(attribute="creator", values=("ann",))
    world = World(policy=ServicePolicy(score=ScorePolicy(rules=(blocked,))))
    world.items.put_items([Item(item_id=i, title=i, creator="ann") for i in ITEMS[:5]])
    for _ in range(2):
        asked = (request("a", k=4), request("b", candidates=tuple(ITEMS[3:6])))
        retrieved, ranked = world.answer(*asked)
        assert len(retrieved.items) == 4
        assert not set(ids(retrieved)) & set(ITEMS[:5])
        assert set(ids(ranked)) == set(ITEMS[3:6])
        world.deploy(ONE, model())


def test_candidates_are_ranked_by_the_model_and_nothing_else_is_returned(world):
    candidates = ("item-7", "nowhere", "item-3", "item-7", "item-5")
    (answer,) = world.answer(request(candidates=candidates, exclude=("item-5",)))
    assert ids(answer) == ["item-3", "item-7", "nowhere"]
    mixed = world.answer(request("ann", candidates=candidates), request("bob"))
    assert [len(a.items) for a in mixed] == [4, 5]


@pytest.mark.parametrize(
    "given", [{"k": 0}, {"k": 501}, {"candidates": ("a",) * 5001}, {"deadline_ms": -1}]
)
def test_a_wrong_request_is_told_so_and_its_neighbours_are_answered(world, given):
    wrong, right = world.answer(request("ann", **given), request("bob"))
    assert wrong.status is Status.INVALID
    assert wrong.message
    assert wrong.items == ()
    assert right.status is Status.OK


def test_a_request_past_its_deadline_is_not_scored(world):
    late, early = world.answer(
        request("ann", deadline_ms=50), request("bob", deadline_ms=500), age_ms=80
    )
    assert (late.status, late.items) == (Status.EXPIRED, ())
    assert late.message == "taken up 30 ms after its deadline"
    assert early.status is Status.OK


def test_who_would_be_answered_too_late_gets_popular_items_at_once():
    world = World(call_s=0.030)
    world.deploy(ONE, model())
    late, early, patient = world.answer(
        request("ann", deadline_ms=50), request("bob", deadline_ms=60), request("eve"), age_ms=25
    )
    assert (late.status, late.fallback_reason) == (Status.FALLBACK, "deadline")
    assert (late.model_name, len(late.items)) == ("popularity", 5)
    assert [a.fallback_reason for a in (early, patient)] == [None, None]
    assert world.metrics.value("serve.fallbacks", reason="deadline") == 1


def test_without_a_model_popular_items_are_answered(world):
    world = World()
    (answer,) = world.answer(request())
    assert (answer.status, answer.fallback_reason) == (Status.FALLBACK, "no-model")
    assert (answer.model_name, answer.arm, len(answer.items)) == ("popularity", Arm.NONE, 5)
    assert world.metrics.value("serve.fallbacks", reason="no-model") == 1


def test_without_a_catalogue_an_empty_answer_is_still_an_answer():
    (answer,) = World(catalogue=[]).answer(request())
    assert (answer.status, answer.items) == (Status.FALLBACK, ())


def test_a_model_that_fails_is_replaced_by_popular_items(world):
    world.deploy(ONE, Faulty(model()))
    answers = world.answer(*(request(f"u{i}") for i in range(40)))
    assert {a.fallback_reason for a in answers} == {"model-fault"}
    assert all(len(a.items) == 5 for a in answers)
    assert world.metrics.value("serve.model_faults", version="1") == 1


def test_a_broken_model_is_not_asked_for_ever(world):
    broken = Faulty(model())
    world.deploy(ONE, broken)
    world.answer(*(request(f"u{i}") for i in range(200)))
    assert broken.calls <= 16


def test_one_request_that_the_model_cannot_take_does_not_spoil_the_others(world):
    world.row("u3", "item-59")
    hashed = hash_ids(["item-59"]).view(np.int64)[0]

    world.deploy(ONE, Faulty(model(), when=lambda users: bool((users.longs == hashed).any())))
    answers = world.answer(*(request(f"u{i}") for i in range(10)))
    assert [a.user_id for a in answers if a.status is Status.FALLBACK] == ["u3"]


def test_a_request_that_breaks_its_batch_is_found_dead_lettered_and_answered(world):
    hashed = hash_ids(["item-59"]).view(np.int64)[0]
    world.row("u3", "item-59")
    bug = RuntimeError("a bug")
    world.deploy(ONE, Faulty(model(), bug, lambda users: bool((users.longs == hashed).any())))
    asked = world.asked(*(request(f"u{i}") for i in range(10)))
    answers = world.service.answer(asked)
    assert [a.user_id for a in answers.answers] == [f"u{i}" for i in range(10)]
    assert [a.status is Status.OK for a in answers.answers] == [i != 3 for i in range(10)]
    (dead,) = answers.dead
    assert (dead.index, dead.rejected.reason) == (3, Reason.POISON)
    assert "a bug" in (answers.answers[3].message or "")


def test_without_the_store_the_model_answers_on_default_features(world):
    world.row("ann", "item-0")
    world.store.gone = True
    (answer,) = world.answer(request())
    assert (answer.status, answer.fallback_reason) == (Status.FALLBACK, "no-store")
    assert (answer.model_version, answer.events_offset) == (1, -1)
    world.store.gone = False
    (answer,) = world.answer(request())
    assert answer.fallback_reason == "no-store"  # it is left alone for a while
    world.clock.advance(1.1)
    (answer,) = world.answer(request())
    assert answer.status is Status.OK


def test_a_corrupt_row_is_answered_on_default_features(world):
    world.raw_row("ann", b"rubbish")
    ann, bob = world.answer(request("ann"), request("bob"))
    assert (ann.status, ann.fallback_reason) == (Status.FALLBACK, "corrupt-row")
    assert bob.status is Status.OK


def test_an_event_that_has_been_folded_is_not_waited_for(world):
    world.row("ann", next_offset=8)
    event = Offset(partition=place("ann"), offset=7)
    (answer,) = world.answer(request(after_offset=event))
    assert (answer.stale, answer.events_offset) == (False, 8)
    assert world.clock.monotonic_s() == 0


def test_an_event_that_is_just_being_folded_is_waited_for(world):
    world.row("ann", next_offset=7)
    coming = Update(rows={}, partials={}, next_offset=8)
    world.store.arrivals = [(place("ann"), coming)]
    event = Offset(partition=place("ann"), offset=7)
    (answer,) = world.answer(request(after_offset=event))
    assert (answer.stale, answer.events_offset) == (False, 8)


@pytest.mark.parametrize(("deadline_ms", "waited_s"), [(None, 0.050), (20, 0.020)])
def test_an_event_that_does_not_come_is_waited_for_within_the_cap(world, deadline_ms, waited_s):
    world.row("ann", next_offset=7)
    event = Offset(partition=place("ann"), offset=7)
    (answer,) = world.answer(request(after_offset=event, deadline_ms=deadline_ms))
    assert (answer.status, answer.stale) == (Status.OK, True)
    assert world.clock.monotonic_s() == pytest.approx(waited_s, abs=0.002)


def test_an_event_in_another_partition_is_stale_at_once(world):
    event = Offset(partition=(place("ann") + 1) % 4, offset=0)
    (answer,) = world.answer(request(after_offset=event))
    assert answer.stale
    assert world.clock.monotonic_s() == 0


def test_each_user_gets_the_arm_of_the_rollout(world):
    release = start_canary(ONE, 2, 5000, WHY)
    world.deploy(release, model(1), model(2, best=("item-59",)))
    users = [f"user-{i}" for i in range(100)]
    expected = in_canary(release, hash_ids(users))
    answers = world.answer(*(request(user) for user in users))
    assert [a.arm is Arm.CANARY for a in answers] == expected.tolist()
    assert [a.model_version for a in answers] == [2 if c else 1 for c in expected]
    assert {a.rollout_id for a in answers} == {release.rollout_id}
    assert all((ids(a)[0] == "item-59") == (a.model_version == 2) for a in answers)


def test_a_canary_that_is_not_loaded_leaves_its_users_with_the_stable_version(world):
    world.deploy(start_canary(ONE, 2, 10_000, WHY), model(1))
    (answer,) = world.answer(request())
    assert (answer.arm, answer.model_version, answer.status) == (Arm.STABLE, 1, Status.OK)


def test_a_shadow_answers_beside_and_is_recorded(world):
    world.deploy(shadow(ONE, 2, WHY), model(1), model(2, best=("item-59",)))
    (answer,) = world.answer(request())
    assert ids(answer) == ITEMS[:5]
    assert answer.shadow is not None
    assert (answer.shadow.version, answer.shadow.item_ids[0]) == (2, "item-59")
    assert len(answer.shadow.scores) == 5


@pytest.mark.parametrize("error", [ModelFault("NaN"), RuntimeError("a bug"), KeyError("x")])
def test_a_shadow_that_fails_harms_nobody(world, error):
    world.deploy(shadow(ONE, 2, WHY), model(1), Faulty(model(2), error))
    (answer,) = world.answer(request())
    assert (answer.status, ids(answer)) == (Status.OK, ITEMS[:5])
    assert answer.shadow is not None
    assert answer.shadow.error


def test_answers_written_by_columns_say_the_same(world):
    codec = Codec(MemoryRegistry(), Recommendation, "t")
    for user in ("ann", "bob", "u3"):
        world.row(user, "item-50", "item-51", next_offset=7)
    release = shadow(start_canary(ONE, 2, 5_000, WHY), 3, WHY)
    world.deploy(release, model(), model(version=2), Faulty(model(version=3), when=many))
    asked = world.asked(
        request("ann", surface="home", country="DE"),
        request("bob", k=0),
        request("u3", candidates=("item-7", "item-9")),
        *(request(f"u{i}") for i in range(20)),
        age_ms=3,
    )
    answers = world.service.answer(asked)
    records = AnswerWriter(codec).records(answers)
    assert [codec.decode(one.value) for one in records] == list(answers.answers)
    assert [one.key for one in records] == [one.request.user_id.encode() for one in asked]
    assert {answer.shadow is None for answer in answers.answers} == {True, False}


def test_columns_name_the_items_of_the_model_and_of_the_caller(world):
    for requests in (
        [request("ann"), request("bob", k=2)],
        [request("ann"), request("bob", candidates=("item-7", "nowhere"))],
        [request("ann", candidates=("item-7",))],
    ):
        ((_, part),) = world.service.answer(world.asked(*requests)).parts
        items = part.columns()["items"]
        told = items.values["item_id"]
        found = told.texts() if isinstance(told, Encoded) else told
        expected = [i.item_id for answer in part.recommendations() for i in answer.items]
        assert found == expected
        assert isinstance(told, Encoded) == all(not one.candidates for one in requests)


def test_answers_of_several_batches_are_written_together(world):
    """With and without a shadow, a traced one, one that is not scored, and nothing but that."""
    codec = Codec(MemoryRegistry(), Recommendation, "t")
    writer = AnswerWriter(codec)
    world.row("ann", "item-50", next_offset=7)
    plain = world.service.answer(world.asked(request("ann", country="DE"), request("bob", k=0)))
    world.deploy(shadow(ONE, 2, WHY), model(1), model(2, best=("item-59",)))
    shadowed = world.service.answer(world.asked(request("u1"), request("u2", surface="home")))
    refused = world.service.answer(world.asked(request("eve", k=0)))
    batches = [plain, shadowed, refused, plain]
    headers = [{0: (("a", b"b"),)}, {}, {}, {1: (("c", b"d"),)}]
    apart = [
        one for a, h in zip(batches, headers, strict=True) for one in writer.records(a, headers=h)
    ]
    assert writer.records_of(batches, headers) == apart
    assert [bool(one.headers) for one in apart] == [True, *[False] * 5, True]
    shadows = [codec.decode(one.value).shadow for one in apart]
    assert [one is None for one in shadows] == [True, True, False, False, True, True, True]


def test_one_answer_that_cannot_be_written_does_not_hold_the_others_up(world):
    codec = Codec(MemoryRegistry(), Recommendation, "t")
    writer = AnswerWriter(codec, max_answer_bytes=4_000)
    fine = world.service.answer(world.asked(request("ann")))
    large = world.service.answer(world.asked(request("bob", k=50)))
    records = writer.records_of([fine, large], [{}, {}])
    assert records == [*writer.records(fine), *writer.records(large)]
    assert [codec.decode(r.value).status for r in records] == [Status.OK, Status.INVALID]


def test_callers_are_told_the_same_without_features(world):
    world.row("ann", "item-0")
    late = request("eve", deadline_ms=1)
    asked = world.asked(request("ann"), request("bob", k=0), request("new"), late, age_ms=5)
    answers = world.service.answer(asked)
    ann, bob, new, eve = told(answers)
    for given, logged in ((ann, answers.answers[0]), (new, answers.answers[2])):
        assert isinstance(given, RecommendAnswer)
        lean = msgspec.to_builtins(given)
        items = [(one.pop("item_id"), one.pop("score")) for one in lean.pop("items")]
        assert items == [(one.item_id, one.score) for one in logged.items]
        assert lean.pop("latency_us") == asdict(logged.latency_us)
        assert lean == {name: getattr(logged, name) for name in lean}
        assert len(items) == 5
    assert isinstance(bob, Rejected)
    assert "k must be between" in str(bob)
    assert isinstance(eve, TimeoutError)


def many(users) -> bool:
    return len(users) > 5


def test_one_answer_that_cannot_be_written_leaves_the_others_whole(world):
    codec = Codec(MemoryRegistry(), Recommendation, "t")
    asked = world.asked(request("ann", k=1), request("bob", k=20))
    answers = world.service.answer(asked)
    sizes = [len(one.value) for one in AnswerWriter(codec).records(answers)]
    small, large = AnswerWriter(codec, max_answer_bytes=sizes[0] + 1).records(answers)
    assert len(small.value) == sizes[0]
    refused = codec.decode(large.value)
    assert refused.status is Status.INVALID
    assert "ask for fewer items" in (refused.message or "")


def test_a_request_whose_deadline_passes_while_it_waits_is_not_scored(world):
    watched = Faulty(model(), when=lambda users: False)
    world.deploy(ONE, watched)
    asked = world.asked(request("ann", deadline_ms=50), request("bob"), request("cid", k=0))
    prepared = world.service.prepare(asked)
    world.clock.advance(0.080)
    answers = world.service.finish(world.service.score(prepared)).answers
    assert [a.status for a in answers] == [Status.EXPIRED, Status.OK, Status.INVALID]
    assert [a.user_id for a in answers] == ["ann", "bob", "cid"]
    assert answers[0].message == "taken up 30 ms after its deadline"
    assert world.metrics.value("serve.expired_in_queue") == 1


def test_nobody_is_scored_when_all_deadlines_have_passed(world):
    watched = Faulty(model())
    world.deploy(ONE, watched)
    prepared = world.service.prepare(world.asked(request("ann", deadline_ms=50)))
    world.clock.advance(1)
    (answer,) = world.service.finish(world.service.score(prepared)).answers
    assert (answer.status, watched.calls) == (Status.EXPIRED, 0)


def test_a_batch_that_breaks_while_it_is_prepared_is_halved_as_well(world, monkeypatch):
    lookup = world.service._parts.lookup
    read = lookup.read

    def breaking(asked):
        if any(one.request.user_id == "u3" for one in asked):
            raise RuntimeError("a bug in reading")
        return read(asked)

    monkeypatch.setattr(lookup, "read", breaking)
    asked = world.asked(*(request(f"u{i}") for i in range(6)))
    answers = world.service.answer(asked)
    assert [a.status is Status.OK for a in answers.answers] == [i != 3 for i in range(6)]
    assert [dead.index for dead in answers.dead] == [3]
