"""
What of ASGI an endpoint needs: a call's headers, its body within bounds, an answer.

starlette routes and knows CORS. Its requests, responses and handlers of errors, a good part of a
call's time, are not used: what goes wrong is answered by the endpoints themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a call gets."""

    body: bytes
    kind: str  # its media type
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)  # beside length and type


class Heads:
    """The headers of a call. Of one that came twice, the last counts."""

    __slots__ = ("_by_name",)

    def __init__(self, scope: Scope) -> None:
        self._by_name: dict[bytes, bytes] = dict(scope["headers"])

    def get(self, name: str, default: str = "") -> str:
        """`name` in lower case."""
        found = self._by_name.get(name.encode())
        return default if found is None else found.decode("latin-1")


def address(scope: Scope) -> str:
    """Of the peer."""
    client = scope.get("client")
    return client[0] if client else ""


async def read_body(receive: Receive, hold: Callable[[int], None], within_s: float) -> bytes:
    """
    The whole body. `hold` is told of each piece before it is kept, and may refuse it.

    The server waits for its first piece no longer than for the head, so only what is left after
    it is timed here: most bodies come with their head.

    Raises:
        ConnectionResetError: the client closed the connection.
        TimeoutError: it did not come in time.
    """
    message = await receive()
    first = _piece(message)
    hold(len(first))
    if not message.get("more_body", False):
        return first
    pieces = [first]
    async with asyncio.timeout(within_s):
        while message.get("more_body", False):
            message = await receive()
            piece = _piece(message)
            hold(len(piece))
            pieces.append(piece)
    return b"".join(pieces)


def _piece(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ConnectionResetError("the client closed the connection before its body was whole")
    piece: bytes = message.get("body", b"")
    return piece


async def send_answer(send: Send, answer: Answer) -> None:
    """In two messages, as ASGI has it."""
    headers = [
        (b"content-length", b"%d" % len(answer.body)),
        (b"content-type", answer.kind.encode()),
    ]
    headers += [
        (name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def application(
    routes: Sequence[Route],
    unrouted: Callable[[Scope, HTTPException], Answer],
    cors: Mapping[str, Any] | None = None,
) -> App:
    """
    One application, for one event loop.

    Args:
        routes: their endpoints are ASGI applications.
        unrouted: answers for a path or method that is none of theirs.
        cors: arguments of starlette's CORSMiddleware; None: closed.
    """
    router = Router(routes)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = routed  # so the router raises what it has no answer to
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            await send_answer(send, unrouted(scope, error))

    return routed if cors is None else CORSMiddleware(routed, **cors)
