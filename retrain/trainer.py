"""
Trainings as processes of their own: what the controller starts, and asks for the outcome.

`python -m retrain.trainer FILE` does the job that a file describes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import structlog

from inference.registry import FolderRegistry
from ingest.clock import SystemClock
from ingest.settings import Settings
from retrain.campaign import Accepted, Outcome, Rejected
from retrain.gate import Approval
from retrain.job import Shop, in_work, job_folder, policy_of, read_result, run
from retrain.order import JobOrder, Status, order_of
from schemas.errors import Retryable
from schemas.events import RetrainTrigger

logger = structlog.get_logger()

ORDER = "order.json"
LOG = "training.log"


class ProcessTrainer:
    """
    Implements `retrain.control.Trainer`: one child process a training. Its result is a file, so a
    restarted controller finds what ended without it, and leaves a child that still works alone.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, trigger: RetrainTrigger, champion: int) -> None:
        """Start the job of a trigger, unless it is done or under way."""
        self.order(order_of(trigger, champion))

    def order(self, order: JobOrder) -> None:
        """As `start`, for an order."""
        if read_result(self._settings, order.key) or in_work(self._settings, order.key):
            return
        folder = job_folder(self._settings, order.key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ORDER).write_text(_described(order, self._settings))
        with (folder / LOG).open("ab") as log:
            self._children[order.key] = subprocess.Popen(
                [sys.executable, "-m", "retrain.trainer", str(folder / ORDER)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def outcome(self, key: str) -> Outcome | None:
        """How the training ended; None while it runs."""
        found = read_result(self._settings, key)
        if found is not None:
            if found.status == Status.PUBLISHED:
                return Accepted(version=found.version)
            return Rejected(reasons=(f"{found.status}:", *found.reasons))
        child = self._children.get(key)
        if (child and child.poll() is None) or in_work(self._settings, key):
            return None
        log = job_folder(self._settings, key) / LOG
        code = child.returncode if child else "unknown"
        return Rejected(reasons=(f"the training process ended with {code}; see {log}",))

    def quarantine(self, version: int, reason: str) -> None:
        """Mark a published version as never to be served again."""
        registry = FolderRegistry(self._settings.models_dir, profile=self._settings.profile)
        registry.quarantine(self._settings.model_name, version, reason)

    def close(self) -> None:
        """End the children; what they had not published is gone. Idempotent."""
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
                child.wait()


def _described(order: JobOrder, settings: Settings) -> str:
    return json.dumps({"order": asdict(order), "settings": asdict(settings)}, default=str, indent=1)


def _read(path: Path) -> tuple[JobOrder, Settings]:
    found: dict[str, Any] = json.loads(path.read_text())
    approval = found["order"].pop("approval")
    paths = {f.name for f in fields(Settings) if str(f.type) == "Path"}
    settings: dict[str, Any] = {
        n: Path(v) if n in paths else v for n, v in found["settings"].items()
    }
    order = JobOrder(**found["order"], approval=Approval(**approval) if approval else None)
    return order, Settings(**settings)


def main(path: Path) -> int:
    """Do the job of an order file; the exit code is 0 whenever there is a result."""
    from features.catalog import CATALOG  # noqa: PLC0415 - not needed by who only starts
    from retrain.refresh import refresh_history  # noqa: PLC0415

    order, settings = _read(path)

    def tell(line: str) -> None:
        logger.info("train.step", key=order.key, step=line)

    shop = Shop(
        settings=settings,
        features=CATALOG,
        policy=policy_of(settings.profile),
        clock=SystemClock(),
        tell=tell,
    )
    tell("backfilling what users did on their own")
    try:
        tell(f"{refresh_history(settings, CATALOG)} examples of history")
    except Retryable as error:
        # What is archived may do; if it does not, gate and checks say so.
        logger.warning("train.no_fresh_history", key=order.key, error=str(error))
    done = run(order, shop)
    logger.info("train.done", key=done.key, status=done.status, version=done.version)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
