"""The popularity model keeps the model's contract; the ranking follows the item table."""

from __future__ import annotations

import numpy as np
import pytest

from features.declare import HOUR_MS
from features.items import ItemTable
from inference.fallback import Popular, PopularityModel
from ingest.clock import ManualClock
from schemas.events import EventType, Item
from tests.contracts.model import ModelContract, none, users
from tests.unit.test_constant_model import TestConstantModel as Constant
from tests.unit.test_items import CLICK, MINE, NOW, record

FEATURES = Constant.features


class TestPopularityModel(ModelContract):
    features = FEATURES

    @pytest.fixture
    def catalogue(self):
        return np.arange(100, 130, dtype=np.uint64)

    @pytest.fixture
    def model(self, features, catalogue):
        return PopularityModel(features.fingerprint, catalogue, np.arange(30))


def test_the_most_chosen_available_items_come_first():
    clock = ManualClock(now_ms=NOW)
    table = ItemTable(MINE)
    popular = Popular(MINE, table, (EventType.CLICK,), clock, every_s=10)
    assert ranking(popular, table) == []
    table.put_items([Item(item_id=i, title=i) for i in "abc"])
    table.put_items([Item(item_id="d", title="d", available=False)])
    table.put_partials([record("b", 0, *[(CLICK, NOW - 2 * HOUR_MS)] * 3)])
    table.put_partials([record("d", 0, *[(CLICK, NOW - 2 * HOUR_MS)] * 9)])
    table.put_partials([record("c", 0, (CLICK, NOW - 2 * HOUR_MS))])
    assert ranking(popular, table) == ["b", "c", "a"]
    table.put_partials([record("a", 0, *[(CLICK, NOW - 2 * HOUR_MS)] * 5)])
    assert ranking(popular, table) == ["b", "c", "a"]  # counted anew only now and then
    clock.advance(11)
    assert ranking(popular, table) == ["a", "b", "c"]


def ranking(popular: Popular, table: ItemTable) -> list[str]:
    from features.declare import FeatureSet

    found = popular.model().retrieve(users(FeatureSet(features=()), 1), none(1), 10)
    index = table.index(found.items[0][found.items[0] != 0])
    return [table.ids[i] for i in index.tolist()]
