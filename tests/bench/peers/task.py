"""What the benchmark asks of a peer. Imported by both interpreters: it needs neither's packages."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

KEY = "peer:"  # before a user's id, in Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run of a peer."""

    bootstrap_servers: str
    topic: str
    redis_url: str
    events: int
    directory: str  # for what the framework keeps on disk
    state: str  # "own": the framework's keyed state; "batch": rows folded a batch at a time
    partitions: int


def asked() -> Task:
    """The task on the command line, as JSON."""
    return Task(**json.loads(sys.argv[1]))
