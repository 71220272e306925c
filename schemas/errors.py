"""
The error tree. The class says what the caller does.

* MillstreamError
  + Retryable            the same call may work later: do not move the position
    - BrokerUnavailable
    - StoreUnavailable
    - RegistryUnavailable
    - ArchiveUnavailable
    - Overloaded
  + Rejected             this record is bad: dead-letter it, move past it
  + NotServed            no such model, version, label or signature: tell who asks
  + Denied               who asks may not have it: tell them, change nothing
    - Unauthenticated
    - Forbidden
    - QuotaExceeded
  + ModelFault           the model failed, gave NaN or too few scores: serve the fallback, alert
  + PositionMoved        somebody else wrote: discard, ask the sink where to resume
  + Refused              a gate, a signature or a check said no: exit code 3
  + Misconfigured        a person must act: exit code 2
    - PositionForeign
  + ProcessFailed        a process we started stopped or never got ready: exit code 1
"""

from __future__ import annotations

from enum import StrEnum


class MillstreamError(Exception):
    """Root of every error that Millstream raises on purpose."""


class Retryable(MillstreamError):
    """The same call may work later: do not move the position."""


class BrokerUnavailable(Retryable):
    """Kafka did not answer, or refused for now."""


class StoreUnavailable(Retryable):
    """Redis / Valkey did not answer, is full, or is read-only."""


class RegistryUnavailable(Retryable):
    """The schema registry did not answer: records wait, none is dead-lettered for this."""


class ArchiveUnavailable(Retryable):
    """The archive's disk or object store failed or is full."""


class Overloaded(Retryable):
    """More calls wait than may: the caller comes back later."""


class Reason(StrEnum):
    """Why a record was rejected: the closed set of dead-letter reason codes."""

    NOT_FRAMED = "not-framed"  # no Confluent magic byte, or shorter than a frame
    UNKNOWN_SCHEMA = "unknown-schema"  # the registry answered: no such id
    UNDECODABLE = "undecodable"  # the datum does not parse under its schema
    NULL_KEY = "null-key"
    KEY_MISMATCH = "key-mismatch"  # the key is not the value's user id
    MISSING_FIELD = "missing-field"  # empty where a value is required
    OUT_OF_RANGE = "out-of-range"
    IN_FUTURE = "in-future"  # event time > 5 min after the record's timestamp
    TOO_LARGE = "too-large"
    POISON = "poison"  # decodes, but made its handler fail when alone


class Rejected(MillstreamError):
    """This record is bad: dead-letter it with its reason, and move past it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class NotServed(MillstreamError):
    """No such model, version, label or signature is in memory: tell who asks."""


class Denied(MillstreamError):
    """Who asks may not have it: tell them, change nothing."""


class Unauthenticated(Denied):
    """No token, or one that does not hold: forged, expired, for somebody else."""


class Forbidden(Denied):
    """A good token without the scope that the call needs."""


class QuotaExceeded(Denied):
    """The client has had its share for now."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class ModelFault(MillstreamError):
    """The model failed, or gave NaN or another number of scores: serve the fallback, alert."""


class PositionMoved(MillstreamError):
    """The stored position or epoch is not the one this worker started from: discard and re-read."""


class Refused(MillstreamError):
    """A gate, a signature or a check said no. Exit code 3."""


class Misconfigured(MillstreamError):
    """A person must act. The message says what to do. Exit code 2."""


class PositionForeign(Misconfigured):
    """A stored position names another cluster, another topic, or an offset past the log's end."""


class ProcessFailed(MillstreamError):
    """A process that we started stopped, or never got ready. The message ends with its log."""
