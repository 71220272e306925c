"""Which feature sets are folded, whatever can be known of the releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import migrate
from deploy.migrate import Migration, wanted_sets
from deploy.supervise import Service
from features.catalog import CATALOG
from features.declare import FeatureSet, declared
from inference.needed_sets import NeededSet
from ingest.settings import Settings
from schemas.errors import BrokerUnavailable, Refused
from tests.feature_sets import OLD

UNKNOWN = NeededSet(fingerprint="f" * 16, declaration="{}", versions=((7, "previous"),))


def needed(features: FeatureSet, *, said: bool = True) -> NeededSet:
    text = declared(features) if said else ""
    return NeededSet(fingerprint=features.fingerprint, declaration=text, versions=((1, "stable"),))


def by_fingerprint(*found: NeededSet) -> dict[str, NeededSet]:
    return {one.fingerprint: one for one in found}


def test_the_catalogs_set_is_always_wanted_and_others_while_a_version_reads_them() -> None:
    assert wanted_sets(CATALOG, {}, {OLD.fingerprint: declared(OLD)}).here.keys() == {
        CATALOG.fingerprint
    }
    found = wanted_sets(CATALOG, by_fingerprint(needed(OLD), needed(CATALOG)), {})
    assert found.here.keys() == {CATALOG.fingerprint, OLD.fingerprint}
    assert not found.foreign


def test_a_set_that_its_manifest_does_not_declare_is_found_in_the_store() -> None:
    silent = by_fingerprint(needed(OLD, said=False))
    assert OLD.fingerprint in wanted_sets(CATALOG, silent, {OLD.fingerprint: declared(OLD)}).here
    assert OLD.fingerprint in wanted_sets(CATALOG, silent, {}).foreign


class Jobs:
    """Stands for the supervisor: which jobs run, and by which command."""

    def __init__(self) -> None:
        self.commands: dict[str, tuple[str, ...]] = {}

    def start(self, service: Service, _: object) -> None:
        self.commands[service.name] = service.command

    def stop(self, name: str) -> None:
        del self.commands[name]

    def check(self) -> list[str]:
        return []


class Declared:
    """Stands for the declarations in the store."""

    def declare(self, features: FeatureSet) -> None:
        """Nobody asks for it here."""

    def declarations(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def migration(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migration:
    monkeypatch.setattr(migrate, "open_sets", lambda _: Declared())
    return Migration(Settings(), CATALOG, jobs, tmp_path, ("--parallelism", "2"))  # type: ignore[arg-type]


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """What is known of the releases from now on: sets, or the error of asking."""

    def tell(found: object) -> None:
        def asked(_: Settings) -> object:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(migrate, "needed_sets", asked)

    return tell


def names(*features: FeatureSet) -> set[str]:
    return {f"features-{one.fingerprint[:8]}" for one in features}


def test_the_jobs_follow_the_releases(
    migration: Migration, jobs: Jobs, know: Callable[[object], None]
) -> None:
    know(by_fingerprint(needed(OLD), UNKNOWN))
    migration.step()
    migration.step()
    assert jobs.commands.keys() == names(CATALOG, OLD)  # what cannot be computed is left to others
    for features in (CATALOG, OLD):
        command = jobs.commands[f"features-{features.fingerprint[:8]}"]
        assert command[-4:] == ("--set", features.fingerprint, "--parallelism", "2")
    know(by_fingerprint(needed(CATALOG)))
    migration.step()
    assert jobs.commands.keys() == names(CATALOG)
    assert migration.running == {CATALOG.fingerprint}


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), Refused("no manifest")])
def test_what_runs_goes_on_while_nothing_is_known_of_the_releases(
    migration: Migration, jobs: Jobs, know: Callable[[object], None], error: Exception
) -> None:
    know(error)
    migration.step()
    assert jobs.commands.keys() == names(CATALOG)
    know(by_fingerprint(needed(OLD)))
    migration.step()
    know(error)
    migration.step()
    assert jobs.commands.keys() == names(CATALOG, OLD)
