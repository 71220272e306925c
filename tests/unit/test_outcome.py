"""What errors mean to callers over the network."""

from __future__ import annotations

import grpc
import pytest

from inference.outcome import outcome
from schemas import errors
from schemas.errors import Reason, Rejected


def made(kind: type) -> Exception:
    """An error of that class."""
    if kind is errors.QuotaExceeded:
        return errors.QuotaExceeded("used up", 3.0)
    return kind(Reason.OUT_OF_RANGE, "k") if kind is Rejected else kind("a message")


def leaves(kind: type) -> list[type]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize("kind", leaves(errors.MillstreamError), ids=lambda kind: kind.__name__)
def test_every_error_has_an_answer_that_both_protocols_know(kind):
    told = outcome(made(kind))
    assert 400 <= told.status < 600
    assert hasattr(grpc.StatusCode, told.code)


@pytest.mark.parametrize(
    ("error", "status", "code", "reason"),
    [
        (errors.Unauthenticated("x"), 401, "UNAUTHENTICATED", "unauthenticated"),
        (errors.Forbidden("x"), 403, "PERMISSION_DENIED", "forbidden"),
        (errors.NotServed("x"), 404, "NOT_FOUND", "not-served"),
        (errors.QuotaExceeded("x", 2.5), 429, "RESOURCE_EXHAUSTED", "quota"),
        (errors.Overloaded("x"), 429, "RESOURCE_EXHAUSTED", "overloaded"),
        (errors.BrokerUnavailable("x"), 503, "UNAVAILABLE", "unavailable"),
        (errors.ModelFault("x"), 500, "INTERNAL", "model-fault"),
        (Rejected(Reason.OUT_OF_RANGE, "x"), 400, "INVALID_ARGUMENT", "out-of-range"),
        (Rejected(Reason.TOO_LARGE, "x"), 413, "INVALID_ARGUMENT", "too-large"),
        (Rejected(Reason.POISON, "x"), 500, "INTERNAL", "poison"),
        (TimeoutError(), 504, "DEADLINE_EXCEEDED", "timeout"),
    ],
)
def test_who_is_at_fault_is_told_by_the_code(error, status, code, reason):
    told = outcome(error)
    assert (told.status, told.code, told.reason) == (status, code, reason)


def test_a_bug_of_ours_tells_nothing_of_itself():
    secret = "password=hunter2"
    told = [outcome(ValueError(secret)), outcome(Rejected(Reason.POISON, f"KeyError: {secret}"))]
    assert [one.status for one in told] == [500, 500]
    assert not any("hunter2" in one.message for one in told)


def test_a_quota_says_when_to_come_back():
    assert outcome(errors.QuotaExceeded("x", 2.5)).retry_after_s == 2.5
