"""
What answers say: items with their features as served, lineage, positions, times.

The answers that a model gave to a batch stay columns until they are written or looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemFeatures
from features.declare import FeatureSet
from features.texts import ChosenTexts
from inference.live import Deployment
from inference.lookup import Found
from inference.model import ModelRef
from inference.requests import Asked, Bad
from inference.scorer import Assembled, Pick, Scorer
from ingest.clock import Clock
from schemas.column_writer import Column, Ragged, Same, Some
from schemas.events import Arm, Attribute, Recommendation, ScoredItem, Shadow, StageLatency, Status

_OK: Final = list(Status).index(Status.OK)
_FALLBACK: Final = list(Status).index(Status.FALLBACK)
_ARM: Final = {arm: at for at, arm in enumerate(Arm)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one request gets, and from whom."""

    pick: Pick
    ref: ModelRef
    arm: Arm
    rollout_id: str
    experiments: tuple[Attribute, ...] = ()  # the arm of each
    reason: str = ""  # why it is not from the model that should have answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Microseconds of each stage, and when two of them began, on the monotonic clock."""

    queue: Sequence[int]  # [n]
    read: int
    assemble: int
    score: int
    read_at_s: float
    score_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answers to n requests that were scored together."""

    batch: Assembled
    found: Found
    features: FeatureSet
    served: Sequence[Served]
    items: ItemFeatures  # of all picked items, request by request
    shadows: Mapping[int, Shadow]
    times: Times

    def __len__(self) -> int:
        return len(self.served)

    def reasons(self) -> list[str]:
        """[n] why the model that should have answered did not; empty: it did."""
        return [one.reason or why for one, why in zip(self.served, self.found.reasons, strict=True)]

    def columns(self) -> dict[str, Column]:
        """As `Recommendation` has them."""
        requests = [one.request for one in self.batch.asked]
        reasons = self.reasons()
        picks = [one.pick for one in self.served]
        times = self.times
        return {
            "request_id": [one.request_id for one in requests],
            "user_id": [one.user_id for one in requests],
            "event_time": self.batch.context.now_ms,
            "status": np.array([_FALLBACK if reason else _OK for reason in reasons]),
            "message": Same(None),
            "items": Ragged(
                np.cumsum([0, *(len(pick.ids) for pick in picks)]),
                {
                    "item_id": _item_ids(picks),
                    "score": np.concatenate([pick.scores for pick in picks]),
                    "longs": self.items.longs,
                    "floats": self.items.floats,
                },
            ),
            "model_name": [one.ref.name for one in self.served],
            "model_version": np.array([one.ref.version for one in self.served]),
            "arm": np.array([_ARM[one.arm] for one in self.served]),
            "rollout_id": [one.rollout_id for one in self.served],
            "experiments": self._experiments_column(),
            "fallback_reason": [reason or None for reason in reasons],
            "stale": self.found.stale,
            "fingerprint": Same(self.features.fingerprint),
            "events_partition": self.found.partitions,
            "events_offset": self.found.offsets,
            "row_age_ms": self.row_ages(),
            "latency_us": {
                "queue": np.array(times.queue),
                "read": Same(times.read),
                "assemble": Same(times.assemble),
                "score": Same(times.score),
            },
            "user_longs": self.batch.users.longs,
            "user_floats": self.batch.users.floats,
            "shadow": self._shadow_column(),
            "surface": [one.surface for one in requests],
            "device": [one.device for one in requests],
            "country": [one.country for one in requests],
        }

    def recommendations(self) -> Iterator[Recommendation]:
        """The answers one by one, in the order of the requests."""
        user_longs, user_floats = self.batch.users.longs.tolist(), self.batch.users.floats.tolist()
        offsets, partitions = self.found.offsets.tolist(), self.found.partitions.tolist()
        stale, ages, reasons = self.found.stale.tolist(), self.row_ages().tolist(), self.reasons()
        items = self._items()
        for i, (one, got) in enumerate(zip(self.batch.asked, self.served, strict=True)):
            request = one.request
            yield Recommendation(
                request_id=request.request_id,
                user_id=request.user_id,
                event_time=one.now_ms,
                status=Status.FALLBACK if reasons[i] else Status.OK,
                items=next(items),
                model_name=got.ref.name,
                model_version=got.ref.version,
                arm=got.arm,
                rollout_id=got.rollout_id,
                experiments=got.experiments,
                fallback_reason=reasons[i] or None,
                stale=stale[i],
                fingerprint=self.features.fingerprint,
                events_partition=partitions[i],
                events_offset=offsets[i],
                row_age_ms=ages[i],
                latency_us=StageLatency(
                    queue=self.times.queue[i],
                    read=self.times.read,
                    assemble=self.times.assemble,
                    score=self.times.score,
                ),
                user_longs=tuple(user_longs[i]),
                user_floats=tuple(user_floats[i]),
                shadow=self.shadows.get(i),
                surface=request.surface,
                device=request.device,
                country=request.country,
            )

    def _items(self) -> Iterator[tuple[ScoredItem, ...]]:
        """Each request's items."""
        longs, floats = (
            map(tuple, self.items.longs.tolist()),
            map(tuple, self.items.floats.tolist()),
        )
        for one in self.served:
            pick = one.pick
            yield tuple(
                ScoredItem(item_id=item_id, score=score, longs=next(longs), floats=next(floats))
                for item_id, score in zip(pick.ids, pick.scores.tolist(), strict=True)
            )

    def row_ages(self) -> NDArray[np.int64]:
        """[n] ms: event time less the newest event of the row; -1: no row."""
        rows, now_ms = self.found.rows, self.batch.context.now_ms
        age_ms = np.maximum(0, now_ms - rows.last_seen_ms)  # a request may be older than the row
        return np.where(rows.first_seen_ms == 0, -1, age_ms)

    def _experiments_column(self) -> Column:
        told = [one.experiments for one in self.served]
        flat = [one for of in told for one in of]
        return Ragged(
            np.cumsum([0, *map(len, told)]),
            {"name": [one.name for one in flat], "value": [one.value for one in flat]},
        )

    def _shadow_column(self) -> Column:
        if not self.shadows:
            return Same(None)
        present = np.zeros(len(self), bool)
        present[list(self.shadows)] = True
        given = [self.shadows[i] for i in sorted(self.shadows)]
        ids, scores = [one.item_ids for one in given], [one.scores for one in given]
        splits = np.cumsum([0, *map(len, ids)])
        return Some(
            present,
            {
                "version": np.array([one.version for one in given]),
                "item_ids": Ragged(splits, [item_id for one in ids for item_id in one]),
                "scores": Ragged(splits, np.array([s for one in scores for s in one], np.float32)),
                "latency_us": np.array([one.latency_us for one in given]),
                "error": [one.error for one in given],
            },
        )


def _item_ids(picks: Sequence[Pick]) -> Column:
    """Of all picks, without a text for each where only the places of texts are known."""
    told = [pick.ids for pick in picks]
    chosen = [ids for ids in told if isinstance(ids, ChosenTexts)]
    if len(chosen) < len(told) or len({id(ids.of.texts) for ids in chosen}) != 1:
        return [item_id for ids in told for item_id in ids]
    return chosen[0].of.texts.encoded(np.concatenate([ids.places for ids in chosen]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One answer for each of n requests; the poisonous ones are dead letters as well."""

    n: int
    closed: Mapping[int, Recommendation]  # by place in the batch: not scored
    parts: Sequence[tuple[Sequence[int], Answered]] = ()  # places in the batch, and their answers
    dead: Sequence[Bad] = ()

    @property
    def answers(self) -> tuple[Recommendation, ...]:
        """In the order of the requests."""
        found = dict(self.closed)
        for index, part in self.parts:
            found.update(zip(index, part.recommendations(), strict=True))
        return tuple(found[i] for i in range(self.n))


def closed(one: Asked, status: Status, message: str) -> Recommendation:
    """The answer to a request that was not scored."""
    request = one.request
    return Recommendation(
        request_id=request.request_id,
        user_id=request.user_id,
        event_time=one.now_ms,
        status=status,
        message=message,
        surface=request.surface,
        device=request.device,
        country=request.country,
    )


def shadowed(
    scorer: Scorer, batch: Assembled, deployment: Deployment, clock: Clock
) -> dict[int, Shadow]:
    """What the shadow version would have answered. Its failure is data."""
    version = deployment.release.shadow if deployment.release else 0
    model = deployment.models.get(version)
    if model is None:
        return {}
    start_s = clock.monotonic_s()
    index = np.arange(len(batch.asked))
    error = "the model failed on this request"
    try:
        picks = scorer.picks(model, batch, index)
    except Exception as failure:  # noqa: BLE001 - whatever it is, users are answered
        picks, error = {}, f"{type(failure).__name__}: {failure!s:.300}"
    took_us = round(1e6 * (clock.monotonic_s() - start_s))
    return {i: _shadow(version, picks.get(i), took_us, error) for i in range(len(batch.asked))}


def _shadow(version: int, pick: Pick | None, took_us: int, error: str) -> Shadow:
    if pick is None:
        return Shadow(version=version, item_ids=(), scores=(), latency_us=took_us, error=error)
    return Shadow(
        version=version,
        item_ids=tuple(pick.ids),
        scores=tuple(pick.scores.tolist()),
        latency_us=took_us,
    )
