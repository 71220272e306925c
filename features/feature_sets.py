"""
Which feature sets a store holds: each job says what it folds, by its declaration.

Several sets stand side by side, each with rows, partials and positions under its own keys. From a
declaration any later program that still knows the set's features can fold, read and serve it.
"""

from __future__ import annotations

from contextlib import closing
from typing import Final

from features.catalog import CATALOG, feature_set
from features.declare import FeatureSet, declared
from features.redis_servers import Servers
from ingest.settings import Settings
from schemas.errors import Misconfigured

_KEY: Final = "feature-sets"  # a hash: fingerprint -> declaration


class FeatureSets:
    """The declarations in a store. Thread-safe."""

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        """Connects at first use."""
        self._servers = Servers(url, timeout_s)

    def declare(self, features: FeatureSet) -> None:
        """
        Say that this set is folded here. Idempotent.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        self._servers.ask(_KEY, ["HSET", _KEY, features.fingerprint, declared(features)])

    def declarations(self) -> dict[str, str]:
        """Declarations by fingerprint, sorted."""
        flat = self._servers.ask(_KEY, ["HGETALL", _KEY])[1][0]
        texts = [text.decode() for text in flat]
        return dict(sorted(zip(texts[::2], texts[1::2], strict=True)))

    def forget(self, fingerprint: str) -> None:
        """The set is gone. Idempotent."""
        self._servers.ask(_KEY, ["HDEL", _KEY, fingerprint])

    def close(self) -> None:
        """Give up the connection. Idempotent."""
        self._servers.close()


def open_sets(settings: Settings) -> FeatureSets:
    """The declarations in the settings' store."""
    return FeatureSets(settings.redis_url, settings.timeout_s)


def chosen_set(settings: Settings, name: str | None) -> FeatureSet:
    """
    The catalog's set, or the one in the store whose fingerprint begins with `name`.

    Raises:
        Misconfigured: there is no such set, or there are several.
        Refused: this program cannot compute it; every difference is named.
        StoreUnavailable: the store did not answer.
    """
    if name is None or CATALOG.fingerprint.startswith(name):
        return CATALOG
    with closing(open_sets(settings)) as sets:
        known = sets.declarations()
    found = [fingerprint for fingerprint in known if fingerprint.startswith(name)]
    if len(found) != 1:
        held = ", ".join({*known, CATALOG.fingerprint})
        what = "no feature set" if not found else f"{len(found)} feature sets"
        raise Misconfigured(f"--set {name}: {what} of the store begins so; it holds {held}")
    return feature_set(known[found[0]])
