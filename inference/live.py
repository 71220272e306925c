"""What serves right now, exchanged as one reference while answers go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from inference.model import Model
from ingest.clock import Clock
from schemas.events import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A release, and the models in memory that can carry it out."""

    release: Release | None = None
    models: Mapping[int, Model] = field(default_factory=dict)  # by version


class Live:
    """
    Holder of the deployment. Scoring threads use it; the reloader exchanges it.

    >>> from ingest.clock import ManualClock
    >>> live = Live(ManualClock())
    >>> with live.use() as deployment:
    ...     deployment.release is None
    True
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._deployment = Deployment()
        self._users: dict[int, int] = {}  # by identity of the deployment

    @property
    def deployment(self) -> Deployment:
        """What serves now. To look at; to score, `use` it."""
        return self._deployment

    @contextmanager
    def use(self) -> Iterator[Deployment]:
        """The deployment, whose models stay open until the block ends."""
        with self._changed:
            used = self._deployment
            self._users[id(used)] = self._users.get(id(used), 0) + 1
        try:
            yield used
        finally:
            with self._changed:
                self._users[id(used)] -= 1
                if not self._users[id(used)]:
                    del self._users[id(used)]
                    self._changed.notify_all()

    def exchange(self, new: Deployment, timeout_s: float = 60.0) -> bool:
        """
        Serve `new` from the next batch on; return when nobody uses the old one any more.

        Returns:
            False if somebody still used it after `timeout_s`: its models must not be closed.
        """
        with self._changed:
            old, self._deployment = self._deployment, new
            return self._changed.wait_for(lambda: id(old) not in self._users, timeout_s)
