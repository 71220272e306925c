from collections.abc import Callable

import pytest

from features.store_memory import MemoryStore
from tests.contracts.store import StoreContract


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
