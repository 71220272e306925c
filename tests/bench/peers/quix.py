"""Quix Streams: its RocksDB state and a sink that writes at each checkpoint, or all in the sink."""

from __future__ import annotations

import uuid
from typing import Any

from quixstreams import Application, State
from quixstreams.sinks import BatchingSink, SinkBatch

from tests.bench.peers.job import Job
from tests.bench.peers.row import Row, empty, fold
from tests.bench.peers.task import asked

COMMIT_EVERY = 20_000  # messages of a checkpoint: the largest batch a sink is given


class RowSink(BatchingSink):
    """Writes the newest row of each user, once a checkpoint."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def write(self, batch: SinkBatch) -> None:
        self._job.write({item.value["user_id"]: item.value["row"] for item in batch})


class FoldSink(BatchingSink):
    """Reads, folds and writes the rows of a checkpoint in one go."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def add(self, **record: Any) -> None:
        self._job.start()  # a whole checkpoint is read before the first record is decoded
        super().add(**record)

    def write(self, batch: SinkBatch) -> None:
        self._job.write(self._job.folded(item.value for item in batch))


def main() -> None:
    """Run until every event is written."""
    task = asked()
    job = Job(task)
    app = Application(
        broker_address=task.bootstrap_servers,
        consumer_group=f"quix-{uuid.uuid4().hex}",
        auto_offset_reset="earliest",
        state_dir=task.directory,
        use_changelog_topics=False,  # faster, and nothing is restored here
        commit_every=COMMIT_EVERY,
        commit_interval=60.0,
        loglevel="ERROR",
    )
    topic = app.topic(task.topic, key_deserializer="bytes", value_deserializer="bytes")
    stream = app.dataframe(topic)

    def step(value: bytes, state: State) -> dict[str, Any]:
        event = job.decoded(value)
        row: Row = state.get("row") or empty()
        fold(row, event)
        state.set("row", row)
        return {"user_id": event["user_id"], "row": row}

    if task.state == "own":
        stream.apply(step, stateful=True).sink(RowSink(job))
    else:
        stream.sink(FoldSink(job))
    app.run(count=task.events, timeout=60.0)
    job.report()


if __name__ == "__main__":
    main()
