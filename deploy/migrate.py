"""
From one feature set to the next: both folded side by side for as long as a released version needs
the old one.

A set is folded by a job of its own (`millstream features run --set`), which claims the partitions
of that set and thereby ends an older job of the same set. Which sets are wanted is decided from the
releases again and again; the jobs follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from deploy.commands import worker
from deploy.supervise import RestartPolicy, Supervisor
from features.catalog import feature_set
from features.counts import Counts
from features.declare import FeatureSet
from features.feature_sets import open_sets
from features.redis_store import RedisStore
from features.retire import Retired, Tell, retire
from inference.needed_sets import NeededSet, needed_sets
from ingest.kafka import KafkaLog
from ingest.settings import Settings
from ingest.topics import Topics, check_partitions
from schemas.errors import Refused, Retryable

log = structlog.get_logger(__name__)

RESTARTS: Final = RestartPolicy(limit=5, window_s=60.0)
CAUGHT_UP_EVENTS: Final = 10_000  # that a live log may be ahead of a fold that keeps up


@dataclass(frozen=True, slots=True, kw_only=True)
class SetState:
    """One feature set, as it stands."""

    fingerprint: str
    own: bool  # the catalog's
    versions: tuple[tuple[int, str], ...]  # (version, role) of those that need it
    features: int  # 0: nobody needs it, or this program cannot compute it
    folded: int  # events
    lag: int | None  # records between the positions and the log's end; None: nothing is folded yet
    foreign: str = ""  # why this program cannot compute it; empty: it can

    @property
    def caught_up(self) -> bool:
        """Whether its rows are as fresh as a running job keeps them."""
        return self.lag is not None and self.lag <= CAUGHT_UP_EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The sets that must be folded, and those that only another program can fold."""

    here: Mapping[str, FeatureSet]
    foreign: Mapping[str, str] = field(default_factory=dict)  # why not here


def wanted_sets(
    own: FeatureSet, needed: Mapping[str, NeededSet], declarations: Mapping[str, str]
) -> Wanted:
    """
    The catalog's set and those of released versions. Pure.

    Args:
        declarations: of the sets in the store, for versions whose manifest has none.
    """
    here, foreign = {own.fingerprint: own}, {}
    for fingerprint, one in needed.items():
        if fingerprint in here:
            continue
        try:
            here[fingerprint] = feature_set(one.declaration or declarations.get(fingerprint, ""))
        except Refused as refused:
            foreign[fingerprint] = str(refused)
    return Wanted(here=here, foreign=foreign)


class Migration:
    """Keeps a job running for every wanted set. One thread; `step` again and again."""

    def __init__(
        self,
        settings: Settings,
        own: FeatureSet,
        supervisor: Supervisor,
        logs: Path,
        options: Sequence[str] = (),
    ) -> None:
        """`options`: of `features run`, for every job."""
        self._settings, self._own = settings, own
        self._supervisor, self._logs, self._options = supervisor, logs, tuple(options)
        self._running: set[str] = set()
        self._complained: set[str] = set()

    def step(self) -> None:
        """
        Start what is wanted, end what is not, restart what died.

        What runs goes on while nobody can say which versions are released and what they need.

        Raises:
            ProcessFailed: a job died again and again. Its log's end is in the message.
        """
        try:
            needed, declarations = needed_sets(self._settings), _declarations(self._settings)
        except (Retryable, Refused) as error:
            log.warning("migrate.not_known", error=str(error))
            if self._own.fingerprint not in self._running:
                self._start(self._own)
        else:
            self._follow(wanted_sets(self._own, needed, declarations))
        for name in self._supervisor.check():
            log.warning("migrate.restarted", job=name)

    @property
    def running(self) -> frozenset[str]:
        """Fingerprints of the sets that are folded here."""
        return frozenset(self._running)

    def _follow(self, wanted: Wanted) -> None:
        for fingerprint, why in wanted.foreign.items():
            if fingerprint not in self._complained:
                self._complained.add(fingerprint)
                log.warning(
                    "migrate.foreign",
                    set=fingerprint,
                    why=why,
                    remedy="leave the job of the release that computes it running",
                )
        for fingerprint in sorted(self._running - wanted.here.keys()):
            self._supervisor.stop(_job(fingerprint))
            self._running.remove(fingerprint)
            log.info("migrate.ended", set=fingerprint)
        for fingerprint, features in wanted.here.items():
            if fingerprint not in self._running:
                self._start(features)

    def _start(self, features: FeatureSet) -> None:
        fingerprint = features.fingerprint
        with closing(open_sets(self._settings)) as sets:
            sets.declare(features)  # where the job finds it
        log.info("migrate.begins", set=fingerprint)
        name = _job(fingerprint)
        self._supervisor.start(
            worker(
                name,
                self._settings,
                self._logs / f"{name}.log",
                *("features", "run", "--set", fingerprint, *self._options),
            ),
            RESTARTS,
        )
        self._running.add(fingerprint)


def states(settings: Settings, own: FeatureSet) -> list[SetState]:
    """
    Every set that is in the store, needed, or the catalog's: that one first.

    Raises:
        Retryable: broker or store did not answer.
        Refused: a released version has no readable manifest.
    """
    needed, declarations = needed_sets(settings), _declarations(settings)
    wanted = wanted_sets(own, needed, declarations)
    known = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    topics = Topics(settings.topic_prefix)
    partitions = check_partitions(known, topics)
    ends = {p: end for p, (_, end) in known.bounds(topics.user_events).items()}
    found = []
    for fingerprint in dict.fromkeys((own.fingerprint, *needed, *declarations)):
        one = needed.get(fingerprint)
        features, foreign = wanted.here.get(fingerprint), wanted.foreign.get(fingerprint, "")
        folded, lag = _standing(settings, fingerprint, partitions, ends)
        found.append(
            SetState(
                fingerprint=fingerprint,
                own=fingerprint == own.fingerprint,
                versions=one.versions if one else (),
                features=len(features.features) if features else 0,
                folded=folded,
                lag=lag,
                foreign=foreign,
            )
        )
    return found


def retired(settings: Settings, own: FeatureSet, name: str, tell: Tell) -> Retired:
    """
    Delete the set whose fingerprint begins with `name`.

    Raises:
        Refused: no such set, or it is the catalog's, or a released version needs it.
    """
    known = {*_declarations(settings), own.fingerprint}
    needed = needed_sets(settings)
    found = sorted(f for f in known | needed.keys() if f.startswith(name))
    if len(found) != 1:
        raise Refused(f"--retire {name}: {len(found)} sets begin so; there are {sorted(known)}")
    fingerprint = found[0]
    if fingerprint == own.fingerprint:
        raise Refused(f"--retire {name}: {fingerprint} is the set that this program folds")
    if fingerprint in needed:
        who = ", ".join(f"version {v} ({role})" for v, role in needed[fingerprint].versions)
        raise Refused(
            f"--retire {name}: {who} reads {fingerprint}; release another version first: "
            "`millstream release list`"
        )
    return retire(settings, fingerprint, tell)


def _standing(
    settings: Settings, fingerprint: str, partitions: int, ends: Mapping[int, int]
) -> tuple[int, int | None]:
    """Events folded, and the lag."""
    store = RedisStore(settings.redis_url, fingerprint, timeout_s=settings.timeout_s)
    with closing(store):
        positions = store.positions(range(partitions))
    at = {p: one for p, one in positions.items() if one is not None}
    folded = sum(Counts.of(one.counts).folded for one in at.values())
    lag = sum(max(0, ends[p] - (at[p].next_offset if p in at else 0)) for p in ends)
    return folded, lag if at else None


def _declarations(settings: Settings) -> dict[str, str]:
    with closing(open_sets(settings)) as sets:
        return sets.declarations()


def _job(fingerprint: str) -> str:
    return f"features-{fingerprint[:8]}"
