"""What a crash may do to answers. Imports nothing: the command line names it."""

from __future__ import annotations

from enum import StrEnum


class Delivery(StrEnum):
    """What a crash may do to answers."""

    EXACTLY_ONCE = "exactly-once"  # nothing: answers and offsets are one transaction
    AT_LEAST_ONCE = "at-least-once"  # repeat some, word for word
