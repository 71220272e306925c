"""
Whose trace a request belongs to, as its headers say: W3C Trace Context, level 1.

https://www.w3.org/TR/trace-context/ . Baggage is left where it is: it may hold personal data, and
nothing here needs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ingest.log import Headers

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
# Of an answer, so that nobody on the way takes it for a caller's: a draft of W3C, and what servers
# instrumented with OpenTelemetry send.
TRACERESPONSE: Final = "traceresponse"
SAMPLED: Final = 0x01
# What later versions may set is not ours to pass on: of flags only these are known.
KNOWN_FLAGS: Final = SAMPLED | 0x02  # level 2: the trace id is random
MAX_STATE: Final = 512  # characters that must be passed on; longer ones are dropped
MAX_MEMBERS: Final = 32

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY: Final = r"[a-z0-9][a-z0-9_\-*/]{0,240}(?:@[a-z][a-z0-9_\-*/]{0,13})?"
_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER: Final = re.compile(f"({_KEY})={_VALUE}")


@dataclass(frozen=True, slots=True)
class SpanContext:
    """A span, as others are told of it."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    flags: int = 0
    state: str = ""  # of other vendors, passed on as it came

    @property
    def sampled(self) -> bool:
        """Whether the caller records its part."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """
        >>> SpanContext("ab" * 16, "cd" * 8, SAMPLED).traceparent
        '00-abababababababababababababababab-cdcdcdcdcdcdcdcd-01'
        """
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & KNOWN_FLAGS:02x}"

    def headers(self) -> Headers:
        """As a record carries it."""
        parent = (TRACEPARENT, self.traceparent.encode())
        return (parent, (TRACESTATE, self.state.encode())) if self.state else (parent,)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A header that is not to be used."""

    header: str


def carried(pairs: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Of the headers of a call, those about its trace."""
    return tuple(
        (name.lower(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in pairs
        if name.lower() in (TRACEPARENT, TRACESTATE)
    )


def read(headers: Headers) -> tuple[SpanContext | None, list[Malformed]]:
    """
    The caller's span, if there is a valid one, and what had to be ignored.

    >>> read((("traceparent", b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-00"),))[0].span_id
    'cdcdcdcdcdcdcdcd'
    >>> read((("traceparent", b"00-1-2-3"),))
    (None, [Malformed(header='traceparent')])
    """
    parents = [value for name, value in headers if name == TRACEPARENT]
    if not parents:
        return None, []
    parent = _parent(parents[0]) if len(parents) == 1 else None
    if parent is None:
        return None, [Malformed(TRACEPARENT)]
    states = [value for name, value in headers if name == TRACESTATE]
    if not states:
        return parent, []
    state = _state(states)
    if state is None:
        return parent, [Malformed(TRACESTATE)]
    return SpanContext(parent.trace_id, parent.span_id, parent.flags, state), []


def _parent(value: bytes) -> SpanContext | None:
    found = _PARENT.fullmatch(value.decode("latin-1"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    # A later version may be longer; this one may not, and "ff" is none.
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not (trace_id.strip("0") and span_id.strip("0")):
        return None
    return SpanContext(trace_id, span_id, int(flags, 16) & KNOWN_FLAGS)


def _state(values: list[bytes]) -> str | None:
    """All lists as one; None: something in them is wrong, and none of it is to be used."""
    members = [m.strip(" \t") for v in values for m in v.decode("latin-1").split(",")]
    members = [member for member in members if member]
    found = [_MEMBER.fullmatch(member) for member in members]
    keys = [match.group(1) for match in found if match is not None]
    text = ",".join(members)
    if len(set(keys)) < len(members) or len(members) > MAX_MEMBERS or len(text) > MAX_STATE:
        return None
    return text
