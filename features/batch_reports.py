"""
What the workers of a batch pipeline tell whoever started it: progress, results, errors.

A runner keeps only the text of an error and gives no results back, so each partition has a small
file of its own in a folder that all workers reach. It is written whole or not at all, and a worker
that does a partition again writes it again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas import errors
from schemas.errors import MillstreamError, Rejected

# Between two looks at what the workers have done.
_LOOK_S: Final = 0.5
_TOLD_EVERY: Final = 100_000  # records


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """The folder of one run."""

    folder: Path

    def begin(self) -> None:
        """Make it, empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.json"):
            path.unlink()

    @contextmanager
    def noting(self, step: str, partition: int) -> Iterator[Callable[[int], None]]:
        """Note what is done of a partition in a step, and the error that ends it."""
        done = told = 0

        def tell(records: int) -> None:
            nonlocal done, told
            done += records
            if done - told >= _TOLD_EVERY:
                told = done
                self._put(f"{step}-{partition}.done", done)

        try:
            yield tell
        except MillstreamError as error:
            self._put(f"{step}-{partition}.failed", [type(error).__name__, list(error.args)])
            raise
        self._put(f"{step}-{partition}.done", done)

    def result(self, partition: int, found: dict[str, Any]) -> None:
        """Keep a partition's result."""
        self._put(f"{partition}.result", found)

    def results(self) -> list[dict[str, Any]]:
        """Every partition's result, by partition."""
        found = {int(p.name.split(".")[0]): _json(p) for p in self.folder.glob("*.result.json")}
        return [found[partition] for partition in sorted(found)]

    def done(self, step: str) -> int:
        """Records that a step has done so far."""
        return sum(_json(path) for path in self.folder.glob(f"{step}-*.done.json"))

    def failure(self) -> MillstreamError | None:
        """An error that a worker met, as it was raised; None: none did."""
        for path in sorted(self.folder.glob("*.failed.json")):
            name, arguments = _json(path)
            kind = getattr(errors, name)
            if kind is Rejected:
                arguments[0] = errors.Reason(arguments[0])
            failure: MillstreamError = kind(*arguments)
            return failure
        return None

    @contextmanager
    def watched(self, step: str, on_progress: Callable[[int], None]) -> Iterator[None]:
        """Tell, every half second, how many records a step has done."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(_LOOK_S):
                on_progress(self.done(step))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        on_progress(self.done(step))

    def _put(self, name: str, value: object) -> None:
        path = self.folder / f"{name}.json"
        new = path.with_name(f".{path.name}.{threading.get_ident()}")
        new.write_text(json.dumps(value))
        new.replace(path)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())
