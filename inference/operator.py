"""What a person does to the releases: look, promote, roll back."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from inference.registry import FolderRegistry
from inference.release import Step, Why, accepted, appended, first, signed
from inference.release import promote as promoted
from inference.release import rollback as rolled_back
from inference.release import start_experiment as experiment_started
from inference.release import stop_experiment as experiment_stopped
from inference.signature import Keyring, load_key
from ingest.clock import SystemClock
from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource
from ingest.log import Log, Outgoing, Source, TopicPartition
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.errors import BrokerUnavailable, Refused, Rejected
from schemas.events import Experiment, Measure, Release, ReleaseTransition
from schemas.registry import RemoteRegistry

# States of the release log (retrain.campaign.State) that an operator's step leads to: what serves
# is settled, and no challenger is under way.
START, PROMOTED, ROLLED_BACK = "IDLE", "STABLE", "IDLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One version as `release list` shows it."""

    version: int
    role: str
    profile: str
    created: str
    metrics: tuple[Measure, ...]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The current release and all versions."""

    release: Release | None
    rows: tuple[VersionRow, ...]


def state(settings: Settings) -> State:
    """What is in the registry, and what serves."""
    release, _ = _Topics(settings).read()
    registry = FolderRegistry(settings.models_dir, profile=settings.profile)
    rows = []
    for one in registry.versions(settings.model_name):
        facts = registry.manifest(settings.model_name, one.version).facts
        created = datetime.datetime.fromtimestamp(facts.created_at / 1000, datetime.UTC)
        rows.append(
            VersionRow(
                version=one.version,
                role=", ".join(_roles(release, one.version)),
                profile=facts.profile,
                created=f"{created:%Y-%m-%d %H:%M:%S}",
                metrics=facts.metrics,
                note=f"quarantined: {one.quarantined}" if one.quarantined else "",
            )
        )
    return State(release=release, rows=tuple(rows))


def promote(settings: Settings, version: int, reason: str) -> Release:
    """
    A new release that serves `version` to everybody.

    Raises:
        Refused: the version does not verify, or serves already.
    """
    registry = FolderRegistry(settings.models_dir, profile=settings.profile)
    keys = Keyring.load(settings.keys_dir)
    registry.check(settings.model_name, version, keys)

    def step(current: Release | None, why: Why) -> Release:
        if current is None:
            return first(settings.model_name, version, why, profile=settings.profile)
        return promoted(current, version, why)

    return _take(settings, step, reason, PROMOTED)


def rollback(settings: Settings, reason: str) -> Release:
    """
    A new release that takes the newest step back.

    Raises:
        Refused: there is nothing to roll back to.
    """

    def step(current: Release | None, why: Why) -> Release:
        if current is None:
            raise Refused(f"{settings.model_name} has no release yet")
        return rolled_back(current, why)

    return _take(settings, step, reason, ROLLED_BACK)


def start_experiment(settings: Settings, experiment: Experiment, reason: str) -> Release:
    """
    A new release in which `experiment` runs.

    Raises:
        Refused: it makes no sense, or a version does not verify or reads other features than the
            stable one.
    """
    registry = FolderRegistry(settings.models_dir, profile=settings.profile)
    keys = Keyring.load(settings.keys_dir)

    def step(current: Release | None, why: Why) -> Release:
        if current is None or not current.stable:
            raise Refused(f"{settings.model_name} serves no version yet: nothing to compare with")
        release = experiment_started(current, experiment, why)
        own = registry.manifest(settings.model_name, current.stable).facts.fingerprint
        for arm in experiment.arms:
            registry.check(settings.model_name, arm.version, keys)
            found = registry.manifest(settings.model_name, arm.version).facts.fingerprint
            if found != own:
                raise Refused(
                    f"arm {arm.name!r}: version {arm.version} reads feature set {found}, the "
                    f"stable version {current.stable} reads {own}"
                )
        return release

    return _take(settings, step, reason, None)


def stop_experiment(settings: Settings, name: str, reason: str) -> Release:
    """
    A new release without the experiment.

    Raises:
        Refused: none of that name runs.
    """

    def step(current: Release | None, why: Why) -> Release:
        if current is None:
            raise Refused(f"{settings.model_name} has no release yet")
        return experiment_stopped(current, name, why)

    return _take(settings, step, reason, None)


def _take(
    settings: Settings,
    step: Callable[[Release | None, Why], Release],
    reason: str,
    to_state: str | None,
) -> Release:
    """`to_state` None: the state of the campaign stays what it is."""
    key = load_key(settings.keys_dir)
    topics = _Topics(settings)
    current, last = topics.read()
    now_ms = SystemClock().now_ms()
    release = signed(step(current, Why(at_ms=now_ms, reason=reason)), key)
    link = appended(
        last,
        Step(
            model_name=release.model_name,
            from_state=(state := last.to_state if last else START),
            to_state=state if to_state is None else to_state,
            version=release.stable,
            generation=release.generation,
            at=now_ms,
            reason=reason,
        ),
    )
    topics.write(release, link)
    return release


class _Topics:
    """model-releases and release-log, read and written as a whole."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        topics = Topics(settings.topic_prefix)
        registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
        self._releases = Codec(registry, Release, topics.model_releases)
        self._log = Codec(registry, ReleaseTransition, topics.release_log)

    def read(self) -> tuple[Release | None, ReleaseTransition | None]:
        """The newest valid release of the model, and the last link of its log."""
        settings = self._settings
        keys, now_ms = Keyring.load(settings.keys_dir), SystemClock().now_ms()
        known = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
        release: Release | None = None
        for value in self._values(known, self._releases.topic):
            try:
                release = accepted(release, self._releases.decode(value), keys, now_ms)
            except (Refused, Rejected):
                continue  # readers ignore it too
        links = [self._log.decode(value) for value in self._values(known, self._log.topic)]
        return release, links[-1] if links else None

    def write(self, release: Release, link: ReleaseTransition) -> None:
        """Both, acknowledged."""
        key = release.model_name.encode()
        records = [
            Outgoing(topic=self._log.topic, key=key, value=self._log.encode(link)),
            Outgoing(topic=self._releases.topic, key=key, value=self._releases.encode(release)),
        ]
        servers, timeout_s = self._settings.bootstrap_servers, self._settings.timeout_s
        producer = KafkaProducer(servers, timeout_s=timeout_s)
        try:
            for record in records:
                producer.send(record)
            producer.flush(timeout_s)
        finally:
            producer.close()

    def _values(self, known: Log, topic: str) -> list[bytes]:
        source = KafkaSource(self._settings.bootstrap_servers, timeout_s=self._settings.timeout_s)
        name = self._settings.model_name.encode()
        try:
            return [v for k, v in everything(source, known, topic) if k == name and v is not None]
        finally:
            source.close()


def everything(source: Source, known: Log, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    """
    Keys and values of all that is on a small topic now.

    Raises:
        BrokerUnavailable: the end was not reached in time.
    """
    bounds = known.bounds(topic)
    at = {TopicPartition(topic, p): start for p, (start, _) in bounds.items()}
    ends = {TopicPartition(topic, p): end for p, (_, end) in bounds.items()}
    source.assign(at)
    found: list[tuple[bytes | None, bytes | None]] = []
    while any(at[place] < end for place, end in ends.items()):
        batch = source.poll(10_000, 5.0)
        if batch is None:
            raise BrokerUnavailable(f"{topic} could not be read to its end")
        found += zip(batch.keys, batch.values, strict=True)
        at[TopicPartition(topic, batch.partition)] = batch.next_offset
    return found


def _roles(release: Release | None, version: int) -> list[str]:
    if release is None:
        return []
    roles = {
        "stable": release.stable,
        "previous": release.previous,
        f"canary {release.canary_share / 100:g} %": release.canary,
        "shadow": release.shadow,
        **{f"{e.name}: {a.name}": a.version for e in release.experiments for a in e.arms},
    }
    return [role for role, holder in roles.items() if holder == version]
