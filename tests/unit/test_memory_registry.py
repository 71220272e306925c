from collections.abc import Callable

import pytest

from schemas.registry import MemoryRegistry, Registry
from tests.contracts.registry import RegistryContract


class TestMemoryRegistry(RegistryContract):
    @pytest.fixture
    def registry(self) -> Registry:
        return MemoryRegistry()

    @pytest.fixture
    def unique(self) -> Callable[[str], str]:
        return str
