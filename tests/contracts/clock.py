"""What a clock promises."""

from __future__ import annotations

import pytest

from ingest.clock import Clock


class ClockContract:
    @pytest.fixture
    def clock(self) -> Clock:
        raise NotImplementedError("override with the implementation")

    def test_monotonic_time_never_goes_back(self, clock: Clock) -> None:
        readings = [clock.monotonic_s() for _ in range(100)]
        assert readings == sorted(readings)

    def test_a_sleep_takes_its_time_on_both_clocks(self, clock: Clock) -> None:
        start_s, start_ms = clock.monotonic_s(), clock.now_ms()
        clock.sleep(0.02)
        # A wall clock counts whole milliseconds.
        assert 0.02 <= clock.monotonic_s() - start_s < 5
        assert 19 <= clock.now_ms() - start_ms < 5000

    def test_a_sleep_of_nothing_or_less_returns(self, clock: Clock) -> None:
        clock.sleep(0)
        clock.sleep(-1)

    def test_wall_time_is_in_milliseconds_of_this_age(self, clock: Clock) -> None:
        assert 1_600_000_000_000 < clock.now_ms() < 4_000_000_000_000
