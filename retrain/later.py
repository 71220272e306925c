"""A published version looked at again: on what users did after the time it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.disk import place
from features.examples import take
from retrain.assessment import Judges, assess_popularity, assess_version, popular
from retrain.gate import compared
from retrain.holdout import hold_out
from retrain.job import CUT_MS, Shop
from retrain.ranking import Interval
from retrain.report import Report
from retrain.snapshot import Span, file_problems, read, take_snapshot
from schemas.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A version and the popularity ranking on the same requests."""

    version: Report
    popularity: Report
    lead: Interval  # NDCG a user, over popularity

    @property
    def sides(self) -> tuple[Report, Report]:
        return self.version, self.popularity

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "version": self.version.summary(),
            "popularity": self.popularity.summary(),
            "lead": {"mean": self.lead.mean, "low": self.lead.low, "high": self.lead.high},
        }


def evaluate_version(shop: Shop, version: int) -> Comparison:
    """
    Evaluate on the archive's examples from the version's cut on; popularity counts those before.

    Raises:
        Refused: the version does not verify, its cut is not known, or nothing happened since.
    """
    settings, features = shop.settings, shop.features
    snapshot = take_snapshot(place(settings.archive_dir))
    if found := tuple(file_problems(snapshot, features)):
        raise Refused("; ".join(found))
    facts = shop.registry.manifest(settings.model_name, version).facts
    cut = int({one.name: one.value for one in facts.data}.get(CUT_MS, 0))
    if not cut:
        raise Refused(f"version {version} does not say up to when it was trained")
    shop.tell(f"reading {snapshot.records} examples")
    most, now_ms = shop.policy.train.most_examples, shop.clock.now_ms()
    examples = read(snapshot, features, Span(from_ms=0, until_ms=now_ms + 1, most=most))
    known = popular(examples, np.flatnonzero(examples.event_time < cut))
    after = take(examples, np.flatnonzero(examples.event_time >= cut))
    holdout = hold_out(after, features, shop.policy.evaluation, head=known.head)
    judges = Judges(features=features, policy=shop.policy.evaluation, clock=shop.clock)
    shop.tell(f"evaluating on {len(holdout)} requests")
    asked = (holdout, judges)
    mine = assess_version(shop.registry, settings.model_name, version, settings.keys_dir, asked)
    other = assess_popularity(known, holdout, judges)
    random = np.random.default_rng(shop.policy.evaluation.seed)
    lead = compared(mine, other, shop.policy.gate, random)
    if lead is None:
        raise Refused("version and popularity did not answer the same requests")
    return Comparison(version=mine, popularity=other, lead=lead)
