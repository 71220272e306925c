"""Which versions are loaded, serve and leave: decided, then carried out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inference.constant import ConstantModel
from inference.live import Deployment, Live
from inference.model import ModelRef
from inference.release import Why, first, promote, rollback, shadow, signed, start_canary
from inference.reload import (
    BackOff,
    Load,
    ReleaseFeed,
    Reloader,
    Serving,
    Swap,
    Unload,
    actions,
)
from inference.signature import Keyring, SigningKey
from ingest.clock import ManualClock
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.metrics import MemoryMetrics
from schemas.codec import Codec
from schemas.errors import ModelFault, Refused
from schemas.events import Release
from schemas.registry import MemoryRegistry

WHY = Why(at_ms=0, reason="test")
ONE = first("m", 1, WHY)
TWO = promote(ONE, 2, WHY)
CANARY = start_canary(ONE, 2, 100, WHY)


def serving(release: Release, *versions: int) -> Serving:
    return Serving(release=release, versions=frozenset(versions))


def test_without_a_release_nothing_is_done():
    assert actions(None, Serving(), {1}, ()) == ()


def test_the_stable_version_is_loaded_first():
    release = shadow(start_canary(promote(ONE, 2, WHY), 3, 100, WHY), 4, WHY)
    loads = actions(release, Serving(), (), ())
    assert loads == (Load(2), Load(3), Load(4), Load(1))


def test_the_old_version_serves_until_the_new_one_is_in_memory():
    old = serving(ONE, 1)
    assert actions(TWO, old, {1}, ()) == (Load(2),)
    assert actions(TWO, old, {1, 2}, ()) == (Swap(TWO, frozenset({1, 2})),)
    assert actions(TWO, serving(TWO, 1, 2), {1, 2}, ()) == ()


def test_a_version_that_failed_leaves_the_old_one_serving():
    assert actions(TWO, serving(ONE, 1), {1}, {2}) == ()


def test_a_canary_that_failed_does_not_hold_up_its_release():
    assert actions(CANARY, serving(ONE, 1), {1}, ()) == (Load(2),)
    assert actions(CANARY, serving(ONE, 1), {1}, {2}) == (Swap(CANARY, frozenset({1})),)
    assert actions(CANARY, serving(CANARY, 1), {1, 2}, ()) == (Swap(CANARY, frozenset({1, 2})),)


def test_a_first_release_serves_before_its_canary_is_there():
    assert actions(CANARY, Serving(), {1}, ()) == (Swap(CANARY, frozenset({1})), Load(2))


def test_a_rollback_needs_no_loading():
    back = rollback(TWO, WHY)
    done = actions(back, serving(TWO, 1, 2), {1, 2}, ())
    assert done == (Swap(back, frozenset({1})), Unload(2))


def test_what_serves_is_never_unloaded():
    new = promote(promote(TWO, 3, WHY), 4, WHY)
    assert actions(new, serving(TWO, 1, 2), {1, 2, 3}, {4}) == ()


def test_a_pause_doubles_up_to_its_end():
    back_off = BackOff(first_s=1, longest_s=5)
    assert [back_off.pause_s(n) for n in (1, 2, 3, 4, 2000)] == [1, 2, 4, 5, 5]


class Shelf:
    """A loader whose versions can be made to fail."""

    def __init__(self) -> None:
        self.failing: dict[int, Exception] = {}
        self.loaded: list[int] = []

    def load(self, version: int) -> ConstantModel:
        self.loaded.append(version)
        if version in self.failing:
            raise self.failing[version]
        ref = ModelRef(name="m", version=version, fingerprint="f")
        return ConstantModel(ref, np.array([1], np.uint64), np.ones(1, np.float32))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


class World:
    """model-releases in memory, and what follows it."""

    def __init__(self, clock: ManualClock, key: SigningKey) -> None:
        log = MemoryLog()
        log.create_topic("model-releases", 1)
        self._producer = MemoryProducer(log)
        self._codec = Codec(MemoryRegistry(), Release, "model-releases")
        self._key = key
        self.shelf, self.live, self.metrics = Shelf(), Live(clock), MemoryMetrics()
        source, keys = MemorySource(log), Keyring([key.verify_key()])
        self.feed = ReleaseFeed(source, self._codec, "m", keys, clock)
        self.feed.open(log)
        self.reloader = Reloader(self.feed, self.shelf, self.live, clock, self.metrics)

    def release(self, release: Release, *, key: SigningKey | None = None) -> None:
        value = self._codec.encode(signed(release, key or self._key))
        self.raw(value)

    def raw(self, value: bytes | None, name: str = "m") -> None:
        self._producer.send(Outgoing(topic="model-releases", key=name.encode(), value=value))

    def settle(self) -> None:
        while self.reloader.step():
            pass

    def stable(self) -> int:
        release = self.live.deployment.release
        return release.stable if release else 0


@pytest.fixture
def world(clock, key) -> World:
    return World(clock, key)


def test_a_release_is_loaded_and_serves(world):
    world.release(ONE)
    world.settle()
    assert world.stable() == 1
    assert set(world.live.deployment.models) == {1}
    world.release(TWO)
    world.settle()
    assert world.stable() == 2
    assert set(world.live.deployment.models) == {1, 2}
    assert world.metrics.value("serve.model_version", arm="stable") == 2


def test_a_version_no_longer_needed_is_closed(world):
    world.release(ONE)
    world.settle()
    model = world.live.deployment.models[1]
    world.release(TWO)
    world.release(promote(TWO, 3, WHY))
    world.settle()
    assert set(world.reloader.resident) == {2, 3}
    with pytest.raises(ModelFault, match="closed"):
        model.retrieve(None, np.zeros((1, 0), np.uint64), 1)


FAULTS = [Refused("bad signature"), ModelFault("NaN"), OSError(28, "disk full"), KeyError("a bug")]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_version_that_is_refused_is_reported_and_retried_with_patience(world, clock, error):
    world.release(ONE)
    world.settle()
    world.shelf.failing[2] = error
    world.release(TWO)
    for _ in range(20):
        world.reloader.step()
    assert world.shelf.loaded == [1, 2]
    assert world.stable() == 1
    assert world.metrics.value("serve.versions_refused") == 1
    clock.advance(1.1)
    world.settle()
    assert world.shelf.loaded == [1, 2, 2]
    del world.shelf.failing[2]
    clock.advance(1.1)
    world.settle()
    assert world.stable() == 1  # the second pause is longer
    clock.advance(1.1)
    world.settle()
    assert world.stable() == 2


def test_a_new_release_is_tried_at_once(world):
    world.release(ONE)
    world.settle()
    world.shelf.failing[2] = Refused("half copied")
    world.release(TWO)
    world.settle()
    world.shelf.failing.clear()
    world.release(start_canary(TWO, 3, 100, WHY))
    world.settle()
    assert world.stable() == 2


def test_a_forged_an_unreadable_and_an_older_release_change_nothing(world):
    world.release(TWO)
    world.settle()
    world.release(promote(TWO, 9, WHY), key=SigningKey.generate())
    world.raw(b"\0\0\0\0\1garbage")
    world.raw(None)
    world.release(first("m", 7, WHY))
    world.settle()
    assert world.stable() == 2
    assert world.shelf.loaded == [2, 1]


def test_releases_of_other_models_are_not_ours(world):
    world.release(ONE)
    world.raw(b"whatever", name="other")
    world.settle()
    assert world.stable() == 1


def test_a_model_in_use_is_not_closed_before_its_user_has_finished(world):
    world.release(ONE)
    world.settle()
    entered, leave = threading.Event(), threading.Event()

    def score() -> None:
        with world.live.use() as deployment:
            entered.set()
            assert leave.wait(10)
            deployment.models[1].rank(None, np.zeros((1, 1), np.uint64), None)

    with ThreadPoolExecutor() as pool:
        scoring = pool.submit(score)
        assert entered.wait(10)
        exchange = pool.submit(world.live.exchange, Deployment())
        assert not exchange.done()
        leave.set()
        scoring.result(10)
        assert exchange.result(10)


def test_a_model_that_stays_in_use_is_told(clock):
    live = Live(clock)
    with live.use():
        assert not live.exchange(Deployment(), timeout_s=0.0)
