"""Ports for a stack of a test's own."""

from __future__ import annotations

import os

import pytest

from deploy.ports import is_free


def neighbours() -> tuple[int, int, int]:
    """Ports for broker (and its controller, the next one), store and registry."""
    # Below those that the system gives to clients; another test process begins elsewhere.
    start = 21_000 + os.getpid() % 900 * 10
    for first in range(start, start + 2_000, 10):
        if all(map(is_free, range(first, first + 4))):
            return first, first + 2, first + 3
    pytest.fail(f"no four free ports from {start} on")
