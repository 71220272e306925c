"""
What serves: pure steps from one Release to the next, their signature, and the chained log of them.

A step returns an unsigned Release of the next generation; `signed` makes it valid; `accepted` is
what every reader asks before it believes one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from inference.experiments import problem_of
from inference.signature import Keyring, SigningKey, canonical
from schemas.errors import Refused
from schemas.events import Experiment, Measure, Release, ReleaseTransition

KIND = "release"
ALL_USERS = 10_000  # basis points


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """When and for what reason a step is taken."""

    at_ms: int
    reason: str


def first(model_name: str, version: int, why: Why, *, profile: str = "production") -> Release:
    """The first release of a model: one version for everybody."""
    start = Release(model_name=model_name, generation=0, stable=0, profile=profile)
    return promote(start, version, why)


def promote(release: Release, version: int, why: Why) -> Release:
    """
    Serve `version` to everybody; what was stable is kept for a rollback. Experiments end.

    >>> one = first("m", 1, Why(at_ms=0, reason="first"))
    >>> two = promote(one, 2, Why(at_ms=1, reason="better"))
    >>> (two.generation, two.stable, two.previous)
    (2, 2, 1)
    """
    _check_version(version)
    if version == release.stable:
        raise Refused(f"{release.model_name}: version {version} is stable already")
    return _next(
        release,
        why,
        stable=version,
        previous=release.stable,
        canary=0,
        canary_share=0,
        shadow=0 if release.shadow == version else release.shadow,
        rollout_id="",
        experiments=(),
    )


def rollback(release: Release, why: Why) -> Release:
    """
    Take the newest step back: the canary if there is one, else stable for previous.

    What is rolled back is not kept as previous: a second rollback must not bring it back. With
    the stable version go the experiments, which were compared with it.
    """
    if release.canary:
        return _next(release, why, canary=0, canary_share=0, rollout_id="")
    if not release.previous:
        raise Refused(f"{release.model_name}: there is no previous version to roll back to")
    return _next(release, why, stable=release.previous, previous=0, shadow=0, experiments=())


def start_canary(
    release: Release, version: int, share: int, why: Why, *, rollout_id: str = ""
) -> Release:
    """
    Serve `version` to `share` basis points of the users.

    The rollout_id stays the same for the canary's life: it salts the choice of users.
    """
    _check_version(version)
    if version == release.stable:
        raise Refused(f"{release.model_name}: version {version} is stable already")
    if release.canary:
        raise Refused(f"{release.model_name}: version {release.canary} is in canary already")
    name = rollout_id or f"{release.model_name}-{version}-{release.generation + 1}"
    return _next(
        release,
        why,
        canary=version,
        canary_share=_checked_share(share),
        shadow=0 if release.shadow == version else release.shadow,
        rollout_id=name,
    )


def set_share(release: Release, share: int, why: Why) -> Release:
    """Give the canary another share of the users."""
    if not release.canary:
        raise Refused(f"{release.model_name}: there is no canary whose share could be set")
    return _next(release, why, canary_share=_checked_share(share))


def shadow(release: Release, version: int, why: Why) -> Release:
    """Let `version` answer too, without being shown; 0 ends it."""
    if version and version in (release.stable, release.canary):
        raise Refused(f"{release.model_name}: version {version} serves already")
    return _next(release, why, shadow=version)


def start_experiment(release: Release, experiment: Experiment, why: Why) -> Release:
    """
    Compare versions on users who are in no canary and in no earlier experiment.

    Raises:
        Refused: what it says makes no sense, or one of that name runs.
    """
    if problem := problem_of(experiment):
        raise Refused(f"experiment {experiment.name!r}: {problem}")
    if any(one.name == experiment.name for one in release.experiments):
        raise Refused(f"experiment {experiment.name!r} runs already")
    begun = replace(experiment, started_at=why.at_ms)
    return _next(release, why, experiments=(*release.experiments, begun))


def stop_experiment(release: Release, name: str, why: Why) -> Release:
    """
    End one experiment.

    Raises:
        Refused: none of that name runs.
    """
    left = tuple(one for one in release.experiments if one.name != name)
    if len(left) == len(release.experiments):
        running = ", ".join(one.name for one in release.experiments) or "none"
        raise Refused(f"no experiment {name!r} runs; running: {running}")
    return _next(release, why, experiments=left)


def signed(release: Release, key: SigningKey) -> Release:
    """The same release with this key's signature."""
    named = replace(release, key_id=key.key_id, signature=b"")
    return replace(named, signature=key.sign(KIND, _signed_bytes(named)))


def verify(release: Release, keys: Keyring, now_ms: int) -> None:
    """
    Return if a trusted key signed this release.

    Raises:
        Refused: unsigned, unknown or expired key, or altered; the message says which.
    """
    keys.verify(
        KIND,
        _signed_bytes(release),
        key_id=release.key_id,
        signature=release.signature,
        now_ms=now_ms,
    )


def accepted(current: Release | None, new: Release, keys: Keyring, now_ms: int) -> Release:
    """
    `new`, if it is signed and follows `current`. The same release again is harmless.

    Raises:
        Refused: not validly signed, of another model, or not newer than `current`.
    """
    verify(new, keys, now_ms)
    if current is None or new == current:
        return new
    if new.model_name != current.model_name:
        raise Refused(f"release is of {new.model_name}, this reader serves {current.model_name}")
    if new.generation <= current.generation:
        raise Refused(
            f"release of {new.model_name}: generation {new.generation} does not follow "
            f"generation {current.generation}"
        )
    return new


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a transition says, before it gets its place in the chain."""

    model_name: str
    from_state: str
    to_state: str
    version: int
    generation: int
    at: int
    reason: str
    measures: tuple[Measure, ...] = ()


def appended(last: ReleaseTransition | None, step: Step) -> ReleaseTransition:
    """The step as the next link after `last` (None: the chain's first)."""
    link = ReleaseTransition(
        **_fields(step),
        sequence=last.sequence + 1 if last else 1,
        previous_hash=last.hash if last else b"",
    )
    return replace(link, hash=_link_hash(link))


def verify_chain(transitions: Iterable[ReleaseTransition]) -> ReleaseTransition | None:
    """
    The last link of a whole chain.

    Raises:
        Refused: a link is missing, out of place or altered; the message says which.
    """
    last: ReleaseTransition | None = None
    for link in transitions:
        place = f"release log of {link.model_name}, sequence {link.sequence}"
        expected = last.sequence + 1 if last else 1
        if link.sequence != expected:
            raise Refused(f"{place}: expected sequence {expected}")
        if link.previous_hash != (last.hash if last else b""):
            raise Refused(f"{place}: does not follow the link before it")
        if link.hash != _link_hash(link):
            raise Refused(f"{place}: was altered")
        last = link
    return last


def _next(release: Release, why: Why, **changed: int | str | tuple[Experiment, ...]) -> Release:
    return replace(
        release,
        generation=release.generation + 1,
        issued_at=why.at_ms,
        reason=why.reason,
        key_id="",
        signature=b"",
        **changed,  # type: ignore[arg-type]  # fields of Release, by name
    )


def _check_version(version: int) -> None:
    if version < 1:
        raise Refused(f"{version} is not a version")


def _checked_share(share: int) -> int:
    if not 0 <= share <= ALL_USERS:
        raise Refused(f"a share is 0 to {ALL_USERS} basis points, got {share}")
    return share


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in Step.__slots__}


def _signed_bytes(release: Release) -> bytes:
    described = asdict(release)
    del described["signature"]
    if not described["experiments"]:  # a field that came later: without it, the bytes of before
        del described["experiments"]
    return canonical(described)


def _link_hash(link: ReleaseTransition) -> bytes:
    described = asdict(link)
    del described["hash"]
    described["previous_hash"] = link.previous_hash.hex()
    return hashlib.sha256(canonical(described)).digest()
