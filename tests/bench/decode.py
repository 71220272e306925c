"""Decoding: framed Avro values to columns, against fastavro a record and polars alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import fastavro
import polars as pl

from features.fit import COLUMNS
from schemas.codec import FRAME_BYTES, schema_of
from schemas.columns import ColumnReader
from schemas.events import UserEvent
from schemas.plan import long_bytes
from tests.bench.figures import Figure, figure
from tests.bench.measure import chunks, profiled, rate
from tests.bench.world import World

AIM = 1_500_000.0
BATCH = 8_192
MOST = 400_000
PEER_MOST = 40_000
_SYNC = b"bench-sync-bytes"


def run(world: World) -> Iterator[Figure]:
    """Decode what is on the log, all fields and those that the fold needs."""
    values = [r.value for r in world.records[-MOST:]]
    batches = chunks(values, BATCH)
    reader = ColumnReader(world.registry, UserEvent)

    def decode(columns: tuple[str, ...] | None) -> None:
        for batch in batches:
            if reader.read(batch, columns).bad:
                raise RuntimeError("a good event was refused")

    passes = world.sizes.passes
    decode(None)
    all_fields = rate(len(values), lambda: decode(None), passes=passes)
    needed = rate(len(values), lambda: decode(COLUMNS), passes=passes)
    peer = rate(min(PEER_MOST, len(values)), lambda: _fastavro(values[:PEER_MOST]), passes=2)
    containers = [_container(batch) for batch in batches]

    def alone(columns: tuple[str, ...] | None) -> float:
        wanted = None if columns is None else list(columns)
        return rate(
            len(values),
            lambda: [pl.read_avro(io.BytesIO(c), columns=wanted) for c in containers],
            passes=passes,
        )

    average = sum(map(len, values)) / len(values)
    detail = {"bytes_per_event": round(average, 1), "events": len(values), "batch": BATCH}
    world.notes["decode_per_s"] = needed
    for name, value, columns in (
        ("decode, all 12 fields", all_fields, None),
        ("decode, the 7 fields the fold needs", needed, COLUMNS),
    ):
        missed = {} if value >= AIM else {"profile": profiled(lambda c=columns: decode(c))}
        yield figure(
            name,
            value,
            "events/s",
            aim=AIM,
            peer=("fastavro, a record at a time", peer),
            limits={"polars.read_avro of ready containers": alone(columns)},
            **detail,
            **missed,
        )


def _fastavro(values: list[bytes]) -> None:
    schema = fastavro.parse_schema(json.loads(schema_of(UserEvent)))
    for value in values:
        stream = io.BytesIO(value)
        stream.seek(FRAME_BYTES)
        fastavro.schemaless_reader(stream, schema, None)


def _container(values: list[bytes]) -> bytes:
    """The datums as one Avro container, as its own writer would have made it."""
    empty = io.BytesIO()
    schema = json.loads(schema_of(UserEvent))
    fastavro.writer(empty, schema, [], sync_marker=_SYNC)
    body = b"".join(value[FRAME_BYTES:] for value in values)
    block = (long_bytes(len(values)), long_bytes(len(body)), body, _SYNC)
    return empty.getvalue() + b"".join(block)
