"""Which feature sets the released model versions need."""

from __future__ import annotations

from dataclasses import dataclass

from inference import operator
from inference.registry import FolderRegistry
from ingest.settings import Settings
from schemas.events import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededSet:
    """A feature set and the versions that read it."""

    fingerprint: str
    declaration: str  # empty: a version published before manifests held it
    versions: tuple[tuple[int, str], ...]  # (version, role), ascending


def needed_sets(settings: Settings) -> dict[str, NeededSet]:
    """
    The sets of the stable, canary, shadow and previous version, by fingerprint.

    Raises:
        Refused: a released version has no readable manifest.
        BrokerUnavailable: the releases could not be read.
    """
    release = operator.state(settings).release
    registry = FolderRegistry(settings.models_dir, profile=settings.profile)
    found: dict[str, NeededSet] = {}
    for version, role in roles(release):
        facts = registry.manifest(settings.model_name, version).facts
        before = found.get(facts.fingerprint)
        found[facts.fingerprint] = NeededSet(
            fingerprint=facts.fingerprint,
            declaration=facts.declaration,
            versions=(*(before.versions if before else ()), (version, role)),
        )
    return found


def roles(release: Release | None) -> list[tuple[int, str]]:
    """
    Versions that a release keeps in memory, with what they are there for.

    >>> roles(Release(model_name="m", generation=3, stable=2, previous=1))
    [(2, 'stable'), (1, 'previous')]
    """
    if release is None:
        return []
    named = (
        (release.stable, "stable"),
        (release.canary, "canary"),
        (release.shadow, "shadow"),
        (release.previous, "previous"),
    )
    return [(version, role) for version, role in named if version]
