"""The stored form of a position."""

from __future__ import annotations

import json
from functools import lru_cache

from features.store import Position
from schemas.errors import Misconfigured


def encoded(position: Position) -> str:
    """One line of JSON, for people to read too."""
    return json.dumps(
        {
            "cluster": position.cluster_id,
            "topic": position.topic_id,
            "epoch": position.epoch,
            "next": position.next_offset,
            "origins": position.origins,
            "counts": position.counts,
        }
    )


@lru_cache(maxsize=256)  # serving reads the same ones many times between two writes
def decoded(stored: bytes | None) -> Position | None:
    """
    What `encoded` gave; None: no position.

    Raises:
        Misconfigured: something else stands there.
    """
    if stored is None:
        return None
    try:
        found = json.loads(stored)
        return Position(
            cluster_id=found["cluster"],
            topic_id=found["topic"],
            epoch=found["epoch"],
            next_offset=found["next"],
            origins=tuple((partition, offset) for partition, offset in found["origins"]),
            counts=tuple((name, count) for name, count in found["counts"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Misconfigured(
            f"a stored position cannot be read ({stored!r}); delete its key and run "
            "`millstream features rebuild`"
        ) from error
