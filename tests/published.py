"""A SavedModel as the next version of the registry, signed."""

from __future__ import annotations

from pathlib import Path

from features.catalog import CATALOG
from features.declare import FeatureSet, declared
from inference.registry import FolderRegistry, ModelFacts
from inference.signature import ensure_key
from ingest.clock import SystemClock
from ingest.settings import Settings


def publish(
    settings: Settings,
    exported: Path,
    features: FeatureSet = CATALOG,
    *,
    declaration: str | None = None,
) -> int:
    """
    Publish a folder, and give its version's number.

    declaration: what its manifest says of `features`; None: what is true.
    """
    facts = ModelFacts(
        name=settings.model_name,
        fingerprint=features.fingerprint,
        profile=settings.profile,
        created_at=SystemClock().now_ms(),
        declaration=declared(features) if declaration is None else declaration,
    )
    registry = FolderRegistry(settings.models_dir, profile=settings.profile)
    return registry.publish(exported, facts, ensure_key(settings.keys_dir))
