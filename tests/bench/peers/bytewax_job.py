"""Bytewax: a keyed `stateful_batch` before a batched sink, or whole batches by `flat_map_batch`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from tests.bench.peers.job import Job
from tests.bench.peers.row import Row, empty, fold
from tests.bench.peers.task import asked

BATCH = 10_000  # messages that a source hands on at once


class RowLogic(StatefulBatchLogic[dict[str, Any], Row, Row]):
    """One user's row; told once for all events of a batch."""

    def __init__(self, row: Row | None) -> None:
        self._row = row or empty()

    def on_batch(self, values: list[dict[str, Any]]) -> tuple[Iterable[Row], bool]:
        for event in values:
            fold(self._row, event)
        return [self._row], StatefulBatchLogic.RETAIN

    def snapshot(self) -> Row:
        return self._row


class _Writer(StatelessSinkPartition[tuple[str, Row]]):
    def __init__(self, job: Job) -> None:
        self._job = job

    def write_batch(self, items: list[tuple[str, Row]]) -> None:
        self._job.write(dict(items))


class RowSink(DynamicSink[tuple[str, Row]]):
    """Writes rows as they come: a batch is one command."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Writer:
        return _Writer(self._job)


def main() -> None:
    """Run until the topic's end."""
    task = asked()
    job = Job(task)

    def keyed(messages: list[Any]) -> list[tuple[str, dict[str, Any]]]:
        events = [job.decoded(value) for value in _values(messages)]
        return [(event["user_id"], event) for event in events]

    def folded(messages: list[Any]) -> list[tuple[str, Row]]:
        return list(job.folded(_values(messages)).items())

    flow = Dataflow("peer")
    source = KafkaSource([task.bootstrap_servers], [task.topic], tail=False, batch_size=BATCH)
    messages = op.input("kafka", flow, source)
    if task.state == "own":
        events = op.flat_map_batch("decode", messages, keyed)
        rows = op.stateful_batch("fold", events, RowLogic)
    else:
        rows = op.flat_map_batch("fold", messages, folded)
    op.output("redis", rows, RowSink(job))
    run_main(flow)
    job.report()


def _values(messages: list[Any]) -> list[bytes]:
    """The values; an error that Kafka gave ends the run."""
    if bad := [one for one in messages if not isinstance(one, KafkaSourceMessage)]:
        raise RuntimeError(bad[0])
    return [message.value for message in messages]


if __name__ == "__main__":
    main()
