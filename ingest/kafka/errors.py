"""
What each of Kafka's error codes means to a caller: a table by name, without the library.

A code that is not listed may pass by itself (a leader election, a time-out): BrokerUnavailable.
"""

from __future__ import annotations

from typing import Final

from schemas.errors import (
    BrokerUnavailable,
    MillstreamError,
    Misconfigured,
    PositionForeign,
    PositionMoved,
    Reason,
    Rejected,
)

FENCED: Final = frozenset(
    {
        "_FENCED",
        "PRODUCER_FENCED",
        "INVALID_PRODUCER_EPOCH",
        "INVALID_PRODUCER_ID_MAPPING",
        "UNKNOWN_PRODUCER_ID",
        "TRANSACTION_COORDINATOR_FENCED",
        "ILLEGAL_GENERATION",
        "UNKNOWN_MEMBER_ID",
        "FENCED_INSTANCE_ID",
        "FENCED_MEMBER_EPOCH",
        "STALE_MEMBER_EPOCH",
        "UNRELEASED_INSTANCE_ID",
        "REBALANCE_IN_PROGRESS",
        "_ASSIGNMENT_LOST",
        "_MAX_POLL_EXCEEDED",
    }
)
FOREIGN: Final = frozenset({"_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE", "_LOG_TRUNCATION"})
REJECTED: Final = {
    "MSG_SIZE_TOO_LARGE": Reason.TOO_LARGE,
    "RECORD_LIST_TOO_LARGE": Reason.TOO_LARGE,
    "INVALID_TIMESTAMP": Reason.IN_FUTURE,
    "INVALID_RECORD": Reason.OUT_OF_RANGE,
}
# Waiting does not help: an address, a right, a setting or a version has to change.
MISCONFIGURED: Final = frozenset(
    {
        "_AUTHENTICATION",
        "_SSL",
        "_INVALID_ARG",
        "_INVALID_TYPE",
        "_NOT_CONFIGURED",
        "_NOT_IMPLEMENTED",
        "_UNSUPPORTED_FEATURE",
        "_UNKNOWN_PROTOCOL",
        "_BAD_COMPRESSION",
        "CLUSTER_AUTHORIZATION_FAILED",
        "GROUP_AUTHORIZATION_FAILED",
        "TOPIC_AUTHORIZATION_FAILED",
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        "SASL_AUTHENTICATION_FAILED",
        "ILLEGAL_SASL_STATE",
        "UNSUPPORTED_SASL_MECHANISM",
        "SECURITY_DISABLED",
        "INVALID_CONFIG",
        "INVALID_GROUP_ID",
        "INVALID_PARTITIONS",
        "INVALID_REPLICATION_FACTOR",
        "INVALID_REPLICA_ASSIGNMENT",
        "INVALID_REQUEST",
        "INVALID_REQUIRED_ACKS",
        "INVALID_SESSION_TIMEOUT",
        "INVALID_TRANSACTION_TIMEOUT",
        "INCONSISTENT_GROUP_PROTOCOL",
        "INCONSISTENT_TOPIC_ID",
        "POLICY_VIOLATION",
        "TOPIC_EXCEPTION",
        "TOPIC_DELETION_DISABLED",
        "UNSUPPORTED_COMPRESSION_TYPE",
        "UNSUPPORTED_FOR_MESSAGE_FORMAT",
        "UNSUPPORTED_VERSION",
        "UNSUPPORTED_ASSIGNOR",
        "GROUP_MAX_SIZE_REACHED",
    }
)
# A partition between two leaders, or new and not yet led: over in milliseconds.
PASSING: Final = frozenset(
    {
        "LEADER_NOT_AVAILABLE",
        "NOT_LEADER_FOR_PARTITION",
        "FENCED_LEADER_EPOCH",
        "UNKNOWN_LEADER_EPOCH",
        "OFFSET_NOT_AVAILABLE",
        "UNKNOWN_TOPIC_OR_PART",
        "_UNKNOWN_PARTITION",
    }
)
_CLASSES: Final[tuple[tuple[frozenset[str], type[MillstreamError]], ...]] = (
    (FENCED, PositionMoved),
    (FOREIGN, PositionForeign),
    (MISCONFIGURED, Misconfigured),
)


def meaning(name: str, message: str) -> MillstreamError:
    """
    Our error for a Kafka error code.

    >>> meaning("PRODUCER_FENCED", "commit: a newer producer took over")
    PositionMoved('commit: a newer producer took over')
    >>> meaning("_TRANSPORT", "poll: connection refused")
    BrokerUnavailable('poll: connection refused')
    """
    if name in REJECTED:
        return Rejected(REJECTED[name], message)
    for names, error in _CLASSES:
        if name in names:
            return error(message)
    return BrokerUnavailable(message)
