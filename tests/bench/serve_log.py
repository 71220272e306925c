"""What `millstream serve` said of itself: its log as JSON, read while it is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.bench.serving import QUIET

# What makes its lines readable.
SPOKEN = dict([QUIET, ("MILLSTREAM_LOG_FORMAT", "json")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event of the log."""

    event: str
    at_s: float  # since the epoch
    fields: dict[str, Any]


class ServeLog:
    """Lines from now on."""

    def __init__(self, path: Path, start: int = 0) -> None:
        """`start`: byte from which on lines count."""
        self._path = path
        self._at = start

    def lines(self) -> Iterator[Line]:
        """Whole lines that came since the last call; what is no event is passed over."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, _, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            if not line.startswith(b"{"):
                continue  # TensorFlow's own, or the line for a supervisor
            fields = json.loads(line)
            at = datetime.fromisoformat(fields.pop("timestamp"))
            yield Line(event=fields.pop("event"), at_s=at.timestamp(), fields=fields)
