"""Whatever the times, nothing is lost, doubled or reordered, and nobody waits too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.batcher import Batcher, BatchPolicy
from ingest.clock import ManualClock

arrivals = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 0.02)), max_size=40)


@given(arrivals, st.integers(1, 8))
def test_all_leave_in_order_once(steps, max_size):
    clock = ManualClock()
    waiting: Batcher[int] = Batcher(BatchPolicy(max_size=max_size, max_wait_s=0.01), clock)
    added, left = 0, []
    for count, pause_s in steps:
        waiting.add(range(added, added + count))
        added += count
        clock.advance(pause_s)
        while batch := waiting.take():
            assert len(batch) <= max_size
            left += batch
        assert (waiting.due_in_s() or 1) > 0
    while batch := waiting.take(force=True):
        left += batch
    assert left == list(range(added))
