"""Faust: its table event by event with buffered writes, or batches by `take`."""

from __future__ import annotations

import os
import uuid
from typing import Any

import faust

from tests.bench.peers.job import Job
from tests.bench.peers.row import Row, empty, fold
from tests.bench.peers.task import Task, asked

BATCH = 5_000
WITHIN_S = 0.5


def main() -> None:
    """Run until every event is written."""
    task = asked()
    app = faust.App(
        f"faust-{uuid.uuid4().hex}",
        broker=f"kafka://{task.bootstrap_servers}",
        consumer_auto_offset_reset="earliest",
        broker_max_poll_records=BATCH,
        stream_buffer_maxsize=2 * BATCH,
        stream_wait_empty=False,
        topic_partitions=task.partitions,
        topic_allow_declare=task.state == "own",
        topic_disable_leader=True,
        datadir=task.directory,
        web_enabled=False,
        worker_redirect_stdouts=False,  # the report is printed
    )
    topic = app.topic(task.topic, key_type=bytes, value_type=bytes, value_serializer="raw")
    (by_event if task.state == "own" else by_batch)(app, topic, task)
    faust.Worker(app, loglevel="ERROR").execute_from_commandline()


def by_batch(app: Any, topic: Any, task: Task) -> None:
    """Batches as `take` cuts them."""
    job = Job(task)

    async def run(stream: Any) -> None:
        async for values in stream.take(BATCH, within=WITHIN_S):
            job.write(job.folded(values))
            if job.done:
                end(job)

    app.agent(topic)(run)


def by_event(app: Any, topic: Any, task: Task) -> None:
    """A table with a changelog; changed rows are written together."""
    job = Job(task)
    table = app.Table("rows", default=empty, partitions=task.partitions)

    async def run(stream: Any) -> None:
        changed: dict[str, Row] = {}
        seen = 0
        async for value in stream:
            event = job.decoded(value)
            user = event["user_id"]
            row = table[user]
            fold(row, event)
            table[user] = changed[user] = row
            seen += 1
            if seen % BATCH == 0 or job.done:
                job.write(changed)
                changed = {}
            if job.done:
                end(job)

    app.agent(topic)(run)


def end(job: Job) -> None:
    """Faust has no way to end an agent's worker from within that leaves at once."""
    job.report()
    os._exit(0)


if __name__ == "__main__":
    main()
