"""Clocks: the machine's and the one moved by hand."""

from __future__ import annotations

import pytest

from ingest.clock import ManualClock, SystemClock
from tests.contracts.clock import ClockContract


class TestSystemClock(ClockContract):
    @pytest.fixture
    def clock(self) -> SystemClock:
        return SystemClock()


class TestManualClock(ClockContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    def test_it_stands_still_until_it_is_moved(self, clock: ManualClock) -> None:
        before = (clock.now_ms(), clock.monotonic_s())
        assert (clock.now_ms(), clock.monotonic_s()) == before
        clock.advance(1.5)
        assert (clock.now_ms(), clock.monotonic_s()) == (before[0] + 1500, before[1] + 1.5)

    def test_it_does_not_go_back(self, clock: ManualClock) -> None:
        with pytest.raises(ValueError, match="does not go back"):
            clock.advance(-0.1)
