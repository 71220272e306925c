"""What an error means to a caller over the network: one table for all protocols."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import (
    Forbidden,
    ModelFault,
    NotServed,
    Overloaded,
    QuotaExceeded,
    Reason,
    Rejected,
    Retryable,
    Unauthenticated,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call that failed is answered."""

    reason: str  # for metrics, audit and programs
    status: int  # of HTTP
    code: str  # of gRPC, its name
    message: str  # for people; nothing of ours that they must not see
    retry_after_s: float | None = None


def outcome(error: Exception) -> Outcome:
    """
    How an error is answered. What we do not know is an internal error, and tells nothing.

    >>> outcome(NotServed("no version 7")).status
    404
    """
    match error:
        case Rejected():
            return _rejected(error)
        case QuotaExceeded():
            return _told(error, "quota", 429, "RESOURCE_EXHAUSTED", error.retry_after_s)
        case Overloaded():
            return _told(error, "overloaded", 429, "RESOURCE_EXHAUSTED", 1.0)
        case ModelFault():
            return _told(error, "model-fault", 500, "INTERNAL")
        case TimeoutError():
            message = "no answer in time"
            return Outcome(reason="timeout", status=504, code="DEADLINE_EXCEEDED", message=message)
    for kind, (reason, status, code) in _PLAIN.items():
        if isinstance(error, kind):
            return _told(error, reason, status, code)
    return Outcome(reason="internal", status=500, code="INTERNAL", message="internal error")


_PLAIN = {
    Unauthenticated: ("unauthenticated", 401, "UNAUTHENTICATED"),
    Forbidden: ("forbidden", 403, "PERMISSION_DENIED"),
    NotServed: ("not-served", 404, "NOT_FOUND"),
    Retryable: ("unavailable", 503, "UNAVAILABLE"),
}


def _rejected(error: Rejected) -> Outcome:
    status, code, message = 400, "INVALID_ARGUMENT", error.detail
    if error.reason is Reason.TOO_LARGE:
        status = 413
    elif error.reason is Reason.POISON:
        # Its detail is the text of an error of ours, for the log.
        status, code, message = 500, "INTERNAL", "the request could not be handled"
    return Outcome(reason=error.reason.value, status=status, code=code, message=message)


def _told(
    error: Exception, reason: str, status: int, code: str, retry_after_s: float | None = None
) -> Outcome:
    return Outcome(
        reason=reason, status=status, code=code, message=str(error), retry_after_s=retry_after_s
    )
