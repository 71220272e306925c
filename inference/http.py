"""
An ASGI application on a port: uvicorn, with what it lacks: time-outs for TLS handshakes, for
headers and for answers that nobody reads, and bounds of headers and of connections. The one
importer of `uvicorn` here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inference.listen import HttpOptions
from schemas.errors import Misconfigured

BACKLOG = 1024
# Beyond those that are served: they are told so (503). Yet more are closed unheard, since every one
# holds a file descriptor that Kafka and Redis need as well.
SPARE_CONNECTIONS = 64
Dropped = Callable[[str, str, int], None]  # address, reason, bytes that had come


class HttpServer:
    """One server. `serve` in an event loop; `stop` from anywhere."""

    def __init__(self, app: Any, options: HttpOptions, dropped: Dropped) -> None:
        """
        Binds the port; connections wait until `serve`.

        Raises:
            Misconfigured: the port is taken, or the certificate does not load.
        """
        tls = options.tls
        config = uvicorn.Config(
            app,
            http=_protocol(options, dropped),
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=options.max_connections,
            timeout_keep_alive=options.keep_alive_s,
            timeout_graceful_shutdown=options.stop_s,
            ssl_certfile=tls.cert_file if tls else None,
            ssl_keyfile=tls.key_file if tls else None,
        )
        try:
            config.load()
            self._socket = _listening(options)
        except OSError as error:  # also what ssl raises
            where = f"{options.host}:{options.port}"
            raise Misconfigured(f"cannot serve HTTP on {where}: {error}") from error
        self.port = int(self._socket.getsockname()[1])
        self._server = _Server(config, options)

    async def serve(self) -> None:
        """Answer until told to stop."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Take no more connections; finish what is under way."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's, with a time-out for TLS handshakes."""

    def __init__(self, config: uvicorn.Config, options: HttpOptions) -> None:
        super().__init__(config)
        self._options = options

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop, config = asyncio.get_running_loop(), self.config

        def protocol() -> asyncio.Protocol:
            kind: Any = config.http_protocol_class
            made: asyncio.Protocol = kind(
                config=config, server_state=self.server_state, app_state={}
            )
            return made

        self.servers = [
            await loop.create_server(
                protocol,
                sock=sock,
                ssl=config.ssl,
                ssl_handshake_timeout=self._options.header_s if config.ssl else None,
                backlog=BACKLOG,
            )
            for sock in sockets or ()
        ]
        self.started = True


def _listening(options: HttpOptions) -> socket.socket:
    """
    A socket that listens. What shares a port gets its part of the connections from then on.

    It names its protocol: asyncio turns Nagle's algorithm off only on those that do, and with it
    every answer but a connection's first waits 40 ms for the client's delayed acknowledgement.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        options.host,
        options.port,
        type=socket.SOCK_STREAM,
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_PASSIVE,
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


class _Combining:
    """
    What is written in one turn of the event loop goes out together. uvicorn writes head and body of
    an answer apart; each system call gives the interpreter's lock away, and waits for it after.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []
        self.is_closing = transport.is_closing
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.write(b"".join(pieces))


@dataclass(frozen=True, slots=True)
class _Bounds:
    options: HttpOptions
    dropped: Dropped


class _Bounded(HttpToolsProtocol):
    """
    Closes a connection whose next request, as far as the beginning of its body, does not come in
    time or is too long, that sends without end what is no body, or that does not read its answer.
    """

    # uvicorn makes the protocol itself: what it must know is in its class (`_protocol`).
    bounds: ClassVar[_Bounds]

    # A request has begun to come, but neither its end nor a piece of its body is there yet.
    _awaited = False
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    # Since a head or a piece of a body was complete. Heads of pipelined requests and what follows
    # a chunked body count too: the parser keeps all of them in memory.
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Combining(transport, self.loop))
        # So we are told as long as anything is unsent, and can bound how long. (At 0, that of TLS
        # would pause with nothing to send, for ever.)
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > self.bounds.options.max_connections + SPARE_CONNECTIONS:
            self._drop("too-many-connections")
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if not self._awaited and (self.cycle is None or self.cycle.response_complete):
            self._awaited, self._head_bytes = True, 0
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > self.bounds.options.max_header_bytes:
            self._drop("large-header")
        elif self._awaited and self._timer is None:  # most requests come whole
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._forget_head()
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._forget_head()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.bounds.options.unread_s, self._abort)

    def resume_writing(self) -> None:
        self._forget_unread()
        super().resume_writing()

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.bounds.options.header_s, self._late)

    def _late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._drop("slow-header")
        else:  # the application waits for the body: it hears of the end, and tells
            self.transport.close()

    def _forget_head(self) -> None:
        self._awaited = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _drop(self, reason: str) -> None:
        self._forget_head()
        if not self.transport.is_closing():
            self._tell(reason)
            self.transport.close()

    def _abort(self) -> None:
        """What is unsent is thrown away: closing would wait for it."""
        self._tell("unread-answer")
        self.transport.abort()

    def _tell(self, reason: str) -> None:
        self.bounds.dropped(self.client[0] if self.client else "", reason, self._head_bytes)


def _protocol(options: HttpOptions, dropped: Dropped) -> type[asyncio.Protocol]:
    return type("Bounded", (_Bounded,), {"bounds": _Bounds(options, dropped)})
