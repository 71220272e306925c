"""Whatever the times, nothing is lost, doubled or reordered, and no deadline is slept through."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from inference.batcher import Batcher, BatchPolicy
from ingest.clock import ManualClock

arrivals = st.lists(
    st.tuples(st.integers(0, 9), st.floats(0, 0.02), st.floats(0, 0.05), st.floats(0, 0.01)),
    max_size=40,
)


@dataclass(frozen=True)
class Line:
    fixed_s: float
    per_row_s: float

    def predict(self, rows: int) -> float:
        return self.fixed_s + self.per_row_s * rows


@given(arrivals, st.integers(1, 8), st.floats(0, 0.02), st.floats(0, 0.001))
def test_all_leave_in_order_once_and_in_time(steps, max_size, fixed_s, per_row_s):
    clock, line = ManualClock(), Line(fixed_s, per_row_s)
    policy = BatchPolicy(max_size=max_size, objective_s=0.01, max_pending=400)
    waiting: Batcher[int] = Batcher(policy, clock, line)
    due: dict[int, float] = {}
    added, left = 0, []
    for count, pause_s, patience_s, free_in_s in steps:
        now_s = clock.monotonic_s()
        due |= dict.fromkeys(range(added, added + count), now_s + patience_s)
        waiting.add(range(added, added + count), due.__getitem__)
        added += count
        clock.advance(pause_s)
        while batch := waiting.take(free_in_s):
            assert len(batch) <= max_size
            left += batch
        rest = waiting.due_in_s(free_in_s)
        assert (rest is None) == (not len(waiting))
        if rest is not None and not free_in_s:
            # The model is free: nobody waits beyond where the call would end too late.
            tightest = min(due[i] for i in range(len(left), added))
            slack_s = tightest - clock.monotonic_s() - line.predict(len(waiting))
            assert 0 < rest <= slack_s + 1e-9
    while batch := waiting.take(force=True):
        left += batch
    assert left == list(range(added))
