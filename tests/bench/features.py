"""
The benchmark `features`: from the log to rows and examples, beside limits and beside peers.

All of it from one run, on a real Kafka and a real Valkey that share the machine with what is
measured. The peers are installed on demand into a virtual environment of their own.
"""

from __future__ import annotations

from functools import partial

from tests.bench import (
    backfill,
    decode,
    examples_writing,
    freshness,
    growth,
    item_table,
    lists,
    memory,
    row_memory,
    row_reads,
    same_job,
    to_rows,
)
from tests.bench.harness import Part
from tests.bench.world import World

NAME = "features"
ROWS_AIM = 200_000.0
FRESH_PER_S = 20_000

# `lists` puts more on the log that others read, so it comes after them.
PARTS: tuple[Part[World], ...] = (
    Part(name="decode", run=decode.run),
    Part(name="rows", run=partial(to_rows.run, aim=ROWS_AIM)),
    Part(name="row-reads", run=row_reads.run),
    Part(name="row-memory", run=row_memory.run),
    Part(name="same-job", run=same_job.run),
    Part(name="batches", run=growth.batches),
    Part(name="users", run=growth.users),
    Part(name="freshness", run=partial(freshness.run, per_s=FRESH_PER_S)),
    Part(name="backfill", run=backfill.run),
    Part(name="examples", run=lambda _: examples_writing.run()),
    Part(name="item-table", run=lambda _: iter(item_table.run())),
    Part(name="lists", run=lists.run),
    Part(name="memory", run=memory.run),
)


def about(described: str, made: World) -> list[str]:
    """What was measured, on what."""
    return [
        f"Machine: {described}. Broker, store, clients and the measured process share it.",
        "",
        f"{made.sizes.events:,} events of 20,000 zipf users and 5,000 zipf items (exponent 1), 1 % "
        "sent twice, where nothing else is said; 4 partitions, one broker, uncompressed.",
        "",
        "Peers do a smaller job than ours (last 50 items and 24 h counts, no duplicates, no late "
        "events, no position stored with the rows) and are measured from their first record on; "
        "`its keyed state` is what the framework restores after a crash, `rows folded in batches` "
        "goes past it, reading and writing Redis a batch at a time. Each is one process.",
        "",
        "`others_cpu` is the share of all processors that other work on the machine took while a "
        "figure was measured: above a tenth the figures, latencies above all, are too pessimistic.",
        "",
        "A limit is what one part of the work reaches alone, in the same run, in the same unit.",
    ]
