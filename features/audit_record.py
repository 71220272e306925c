"""What the last audit of a feature set said, kept beside the models for the gate to read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from features.skew import AuditReport, Insufficient, Pass, Skewed, Verdict
from schemas.errors import Misconfigured

FOLDER: Final = ".audits"  # below the models' folder; no model can have this name

Outcome: TypeAlias = Literal["PASS", "SKEWED", "INSUFFICIENT"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """The verdict of an audit, when it was come to, and on how much."""

    fingerprint: str
    at_ms: int
    outcome: Outcome
    reasons: tuple[str, ...]
    users: int
    answers: int
    items: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> AuditRecord:
        """
        A record from its text.

        >>> record = recorded(AuditReport(fingerprint="f", since_ms=0), Pass(), 7)
        >>> AuditRecord.from_json(record.to_json()) == record
        True
        """
        found = json.loads(text)
        return cls(**{**found, "reasons": tuple(found["reasons"])})


def recorded(report: AuditReport, verdict: Verdict, at_ms: int) -> AuditRecord:
    """The record of an audit."""
    outcome: Outcome
    match verdict:
        case Pass():
            outcome, reasons = "PASS", ()
        case Skewed(reasons=reasons):
            outcome = "SKEWED"
        case Insufficient(reasons=reasons):
            outcome = "INSUFFICIENT"
    return AuditRecord(
        fingerprint=report.fingerprint,
        at_ms=at_ms,
        outcome=outcome,
        reasons=reasons,
        users=report.users,
        answers=report.answers,
        items=report.entries,
    )


def save(models_dir: Path, record: AuditRecord) -> Path:
    """Put the record in the place of the one before: whole and durable, or not at all."""
    path = _path(models_dir, record.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    with temporary.open("w") as file:
        file.write(record.to_json())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def load(models_dir: Path, fingerprint: str) -> AuditRecord | None:
    """
    The last audit of a feature set; None: there was none.

    Raises:
        Misconfigured: the file is not one that an audit wrote.
    """
    path = _path(models_dir, fingerprint)
    try:
        return AuditRecord.from_json(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise Misconfigured(f"{path} is no audit: {error}; run `millstream audit` again") from error


def _path(models_dir: Path, fingerprint: str) -> Path:
    return models_dir / FOLDER / f"{fingerprint}.json"
