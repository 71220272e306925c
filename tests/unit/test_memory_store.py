from collections.abc import Callable

import pytest

from features.hot_rows import HotRows
from features.store_memory import MemoryStore
from tests.contracts.store import StoreContract


class HotMemoryStore(HotRows):
    """The other seams beside hot rows, so that they meet the whole contract."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, max_bytes=10_000)
        self.snapshots, self.positions = store.snapshots, store.positions
        self.partials, self.keys = store.partials, store.keys
        self.unpublished, self.settle = store.unpublished, store.settle


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def shared(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def open_store(self, shared: MemoryStore) -> Callable[[], MemoryStore]:
        return lambda: shared

    @pytest.fixture
    def lose_everything(self, shared: MemoryStore) -> Callable[[], None]:
        return shared.lose


class TestHotRows(TestMemoryStore):
    @pytest.fixture
    def open_store(self, shared: MemoryStore) -> Callable[[], HotMemoryStore]:
        return lambda: HotMemoryStore(shared)
