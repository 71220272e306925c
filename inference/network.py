"""The network API in a thread of its own: one event loop for HTTP and gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from inference import openapi
from inference.admission import Admission
from inference.api import Api
from inference.http import HttpServer
from inference.listen import GrpcOptions, HttpOptions
from inference.rest import RestParts, RestPolicy, create_app
from inference.titles import Titles
from ingest.clock import Clock
from schemas.errors import ProcessFailed

if TYPE_CHECKING:
    from inference.grpc import GrpcServer

log = structlog.get_logger(__name__)

START_S = 60.0  # gRPC's messages import TensorFlow
STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkParts:
    """What the network API works with; living longer than it."""

    api: Api
    admission: Admission
    titles: Titles
    model_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """What is served, and how; None: not at all."""

    http: HttpOptions | None = None
    rest: RestPolicy = field(default_factory=RestPolicy)
    grpc: GrpcOptions | None = None


class Network:
    """Serves from the construction on, until closed."""

    def __init__(
        self,
        parts: NetworkParts,
        options: NetworkOptions,
        clock: Clock,
        ended: Callable[[], None],
    ) -> None:
        """
        Returns when both ports are open. `ended`: called if it ends by itself.

        Raises:
            Misconfigured: a port is taken, or a certificate does not load.
        """
        self._parts, self._options, self._clock = parts, options, clock
        self._ended = ended
        self._started = threading.Event()
        self._error: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.http_port = 0
        self.grpc_port = 0
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()
        if not self._started.wait(START_S):
            raise ProcessFailed(f"the network API did not start within {START_S:g} s")
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """
        Finish the calls under way, take no more.

        Raises:
            ProcessFailed: it had ended by itself.
        """
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_S)
        if self._error is not None:
            raise ProcessFailed(f"the network API ended: {self._error}") from self._error

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except Exception as error:
            self._error = error
            if self._started.is_set():
                log.exception("network.ended")
                self._ended()
        finally:
            self._started.set()
            self._loop.close()

    async def _main(self) -> None:
        grpc = self._grpc()
        if grpc is not None:
            await grpc.start()
            self.grpc_port = grpc.port
        try:
            http = self._http()
            self._started.set()
            await self._serve(http)
        finally:
            if grpc is not None:
                await grpc.stop()
            await self._parts.admission.close()

    async def _serve(self, http: HttpServer | None) -> None:
        """Until told to stop."""
        if http is None:
            await self._stop.wait()
            return
        serving = asyncio.create_task(http.serve())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        http.stop()
        await serving
        if not self._stop.is_set():
            raise ProcessFailed("the HTTP server ended by itself")

    def _http(self) -> HttpServer | None:
        if self._options.http is None:
            return None
        parts = self._parts
        app = create_app(
            RestParts(
                api=parts.api,
                admission=parts.admission,
                titles=parts.titles,
                clock=self._clock,
                description=openapi.encoded(parts.model_name),
                policy=self._options.rest,
            )
        )
        server = HttpServer(app, self._options.http, parts.admission.dropped)
        self.http_port = server.port
        return server

    def _grpc(self) -> GrpcServer | None:
        if self._options.grpc is None:
            return None
        from inference.grpc import GrpcServer  # noqa: PLC0415 - imports TensorFlow

        return GrpcServer(self._parts.api, self._parts.admission, self._options.grpc)
