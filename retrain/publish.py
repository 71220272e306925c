"""
The step after the gate: what was accepted is signed and becomes a version.

Only here is the gate's key opened, and only for an `Accept`: whatever trains cannot sign.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.registry import FolderRegistry, ModelFacts
from inference.signature import load_key
from retrain.gate import Accept
from schemas.events import Attribute

METRICS = "metrics.json"
JOB_KEY = "job"  # in a manifest's data: the idempotency key of the job that made the version


def publish(
    verdict: Accept, staging: Path, facts: ModelFacts, registry: FolderRegistry, keys_dir: Path
) -> int:
    """
    Sign and publish a folder as the next version.

    Raises:
        Misconfigured: the gate's key cannot be read.
        Refused: the registry does not take it.
    """
    if not isinstance(verdict, Accept):
        raise TypeError(f"only what the gate accepted is published, got {verdict!r}")
    return registry.publish(staging, facts, load_key(keys_dir))


def published_by(registry: FolderRegistry, name: str, key: str) -> int:
    """The version that a job with this key has published already; 0: none."""
    wanted = Attribute(name=JOB_KEY, value=key)
    for one in reversed(registry.versions(name)):
        if wanted in registry.manifest(name, one.version).facts.data:
            return one.version
    return 0


def write_metrics(staging: Path, metrics: dict[str, Any]) -> None:
    """What the evaluation found, beside the model."""
    (staging / METRICS).write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
