"""How an answer is put together: items with their features as served, lineage, positions, times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.assemble import ItemFeatures
from features.declare import FeatureSet
from inference.live import Deployment
from inference.lookup import Found
from inference.model import ModelRef
from inference.requests import Asked
from inference.scorer import Assembled, Pick, Scorer
from ingest.clock import Clock
from schemas.events import Arm, Recommendation, ScoredItem, Shadow, StageLatency, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one request gets, and from whom."""

    pick: Pick
    ref: ModelRef
    arm: Arm
    rollout_id: str
    reason: str = ""  # why it is not from the model that should have answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What the answers of a batch share."""

    batch: Assembled
    found: Found
    features: FeatureSet
    items: ItemFeatures  # of all picked items, request by request
    queue_us: Sequence[int]  # [n]
    read_us: int
    assemble_us: int
    score_us: int


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


def recommendations(
    built: Built, served: Sequence[Served], shadows: Mapping[int, Shadow]
) -> list[Recommendation]:
    """The answers to a batch, in its order."""
    user_longs = built.batch.users.longs.tolist()
    user_floats = built.batch.users.floats.tolist()
    item_longs = [tuple(row) for row in built.items.longs.tolist()]
    item_floats = [tuple(row) for row in built.items.floats.tolist()]
    offsets = built.found.offsets.tolist()
    partitions = built.found.partitions.tolist()
    stale = built.found.stale.tolist()
    ages = _row_ages(built)
    fingerprint = built.features.fingerprint
    answers, at = [], 0
    for i, (one, got) in enumerate(zip(built.batch.asked, served, strict=True)):
        request = one.request
        end = at + len(got.pick.ids)
        reason = got.reason or built.found.reasons[i]
        items = tuple(
            ScoredItem(item_id=item_id, score=score, longs=longs, floats=floats)
            for item_id, score, longs, floats in zip(
                got.pick.ids,
                got.pick.scores.tolist(),
                item_longs[at:end],
                item_floats[at:end],
                strict=True,
            )
        )
        at = end
        answers.append(
            Recommendation(
                request_id=request.request_id,
                user_id=request.user_id,
                event_time=one.now_ms,
                status=Status.FALLBACK if reason else Status.OK,
                items=items,
                model_name=got.ref.name,
                model_version=got.ref.version,
                arm=got.arm,
                rollout_id=got.rollout_id,
                fallback_reason=reason or None,
                stale=stale[i],
                fingerprint=fingerprint,
                events_partition=partitions[i],
                events_offset=offsets[i],
                row_age_ms=ages[i],
                latency_us=StageLatency(
                    queue=built.queue_us[i],
                    read=built.read_us,
                    assemble=built.assemble_us,
                    score=built.score_us,
                ),
                user_longs=tuple(user_longs[i]),
                user_floats=tuple(user_floats[i]),
                shadow=shadows.get(i),
                surface=request.surface,
                device=request.device,
                country=request.country,
            )
        )
    return answers


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
        version=version, item_ids=pick.ids, scores=tuple(pick.scores.tolist()), latency_us=took_us
    )


def _row_ages(built: Built) -> list[int]:
    """Event time less the newest event of the row; -1: no row."""
    rows, now_ms = built.found.rows, built.batch.context.now_ms
    age_ms = np.maximum(0, now_ms - rows.last_seen_ms)  # a request may be older than the row
    ages: list[int] = np.where(rows.first_seen_ms == 0, -1, age_ms).tolist()
    return ages
