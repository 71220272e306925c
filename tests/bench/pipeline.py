"""
The benchmark `pipeline`: every step from Kafka to a recommendation, each beside its limit.

All of it from one run, on a real Kafka and a real Valkey that share the machine with what is
measured.
"""

from __future__ import annotations

from tests.bench import decode, folding, freshness, serving, to_archive, to_rows
from tests.bench.harness import Part
from tests.bench.world import World

NAME = "pipeline"
PARTS: tuple[Part[World], ...] = (
    Part(name="decode", run=decode.run),
    Part(name="fold", run=folding.run),
    Part(name="rows", run=to_rows.run),
    Part(name="freshness", run=freshness.run),
    Part(name="serving", run=serving.run),
    Part(name="archive", run=to_archive.run),
)


def about(described: str, made: World) -> list[str]:
    """What was measured, on what."""
    return [
        f"Machine: {described}. Broker, store, clients and the measured process share it.",
        "",
        f"{made.sizes.events:,} events of 20,000 zipf users and 5,000 zipf items (exponent 1), "
        f"{made.notes.get('bytes_per_event', 0):.0f} bytes each, uncompressed, 1 % sent twice: "
        "62 % impressions, 18 % views, 11 % clicks, the rest likes, carts, purchases, ratings, "
        "profiles. 4 partitions, one broker.",
        "",
        "`others_cpu` is the share of all processors that other work on the machine took while a "
        "figure was measured: above a tenth the figures, latencies above all, are too pessimistic.",
        "",
        "A limit is what one part of the work reaches alone, in the same run, in the same unit.",
    ]
