"""What metrics are told of answers that were given together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import numpy as np

from inference.answers import Answered
from inference.requests import Asked
from ingest.metrics import Metrics

# By `_value_`: an enumeration's hash and `value` are Python, and this is done for each request.
_SERVER: Final = attrgetter("ref.version", "arm._value_")


def observe(part: Answered, metrics: Metrics) -> None:
    """
    Times of the stages, what the rows were like, and who answered.

    A stage that a batch takes as one is one value; where one of its requests is traced, that trace
    shows it.
    """
    times, found, n = part.times, part.found, len(part)
    traces = sampled(part.batch.asked)
    shown = next(iter(traces.values()), "")
    queue_s = np.array(times.queue) / 1e6
    metrics.observe_all("serve.latency_s", queue_s, traces=traces, stage="queue")
    for stage, us in (("read", times.read), ("assemble", times.assemble), ("score", times.score)):
        metrics.observe("serve.latency_s", us / 1e6, trace_id=shown, stage=stage)
    known = found.rows.first_seen_ms != 0
    metrics.count("serve.rows_missing", float(n - known.sum()))
    metrics.count("serve.stale", float(found.stale.sum()))
    metrics.observe_all("serve.row_age_s", part.row_ages()[known] / 1e3)
    for (version, arm), count in served_by(part).items():
        metrics.count("serve.answers", count, version=str(version), arm=arm)


def served_by(part: Answered) -> Counter[tuple[int, str]]:
    """How many requests each version answered in each arm."""
    return Counter(map(_SERVER, part.served))


def sampled(asked: Sequence[Asked]) -> dict[int, str]:
    """Ids of the traces that are followed, by place: empty for most batches."""
    return {
        i: one.trace.trace_id
        for i, one in enumerate(asked)
        if one.trace is not None and one.trace.sampled
    }
