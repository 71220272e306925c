"""What an evaluation found, as values: per user, so that two models can be compared in pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutFacts:
    """What a holdout is. Reports with the same digest may be compared."""

    digest: str
    from_ms: int
    until_ms: int
    requests: int
    users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserScores:
    """Per-user means over a user's requests, users ascending, [u] each."""

    users: Hashes
    requests: NDArray[np.int64]
    hit_rate: Floats
    ndcg: Floats
    mrr: Floats

    def __len__(self) -> int:
        return len(self.users)

    @property
    def mean_hit_rate(self) -> float:
        return _mean(self.hit_rate)

    @property
    def mean_ndcg(self) -> float:
        return _mean(self.ndcg)

    @property
    def mean_mrr(self) -> float:
        return _mean(self.mrr)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceScores:
    """The scores of one slice of the requests."""

    name: str
    scores: UserScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """Whether the exported model is the trained one."""

    finite: bool  # weights and training loss
    parity: float  # largest |exported - trained| / (1 + |trained|)
    problem: str = ""  # anything else that must stop it


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a call costs, measured while evaluating."""

    batch: int
    p50_ms: float
    p99_ms: float
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that an evaluation found."""

    model: str
    version: int  # 0: not published
    fingerprint: str
    k: int
    holdout: HoldoutFacts
    overall: UserScores
    slices: tuple[SliceScores, ...]
    coverage: float  # share of the holdout's catalogue that was recommended to anybody
    finite: bool
    auc: float | None = None  # mean over shown lists
    probabilities: bool = False  # scores claim to be probabilities
    calibration: float | None = None  # observed / expected
    cost: Cost | None = None
    integrity: Integrity | None = None

    def summary(self) -> dict[str, Any]:
        """The report without its per-user columns, for JSON."""
        return {
            "model": self.model,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "k": self.k,
            "holdout": asdict(self.holdout),
            **_means(self.overall),
            "coverage": self.coverage,
            "auc": self.auc,
            "calibration": self.calibration,
            "finite": self.finite,
            "slices": {s.name: _means(s.scores) for s in self.slices},
            "cost": asdict(self.cost) if self.cost else None,
            "integrity": asdict(self.integrity) if self.integrity else None,
        }


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def _means(scores: UserScores) -> dict[str, Any]:
    return {
        "users": len(scores),
        "requests": int(scores.requests.sum()),
        "hit_rate": scores.mean_hit_rate,
        "ndcg": scores.mean_ndcg,
        "mrr": scores.mean_mrr,
    }
