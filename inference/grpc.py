"""
TensorFlow Serving's gRPC services, so that its clients work unchanged: Predict, GetModelMetadata
and GetModelStatus; with health and reflection. What a call may do is decided by
`inference.admission`.

Importing this imports TensorFlow, whose messages these services exchange; import it late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
)

from inference.admission import Admission, Call, Traced
from inference.api import Api, ModelChoice
from inference.auth import Scope
from inference.listen import GrpcOptions
from inference.protos import (
    DEFAULT_SIGNATURE,
    SIGNATURE_DEF,
    arrays,
    model_spec,
    signature_map,
)
from inference.reply_bytes import reply
from inference.tensor_layout import layout_of, spec_stop
from inference.tensors import PerSignature, signature_of
from inference.time_limit import TimeLimit
from ingest.trace_context import TRACERESPONSE, carried
from schemas.errors import Misconfigured, Reason, Rejected


class _Method(NamedTuple):
    """A method: what labels its metrics, and its names."""

    route: str
    service: str
    name: str


MAX_MESSAGE: Final = 2_000  # characters of an error: it travels in a header
LOOK_S: Final = 0.5  # how often health looks whether a model serves
_PREDICTION: Final = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"]
_MODEL: Final = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]
_PREDICT: Final = _Method("predict", _PREDICTION.full_name, "Predict")
_METADATA: Final = _Method("metadata", _PREDICTION.full_name, "GetModelMetadata")
_STATUS: Final = _Method("status", _MODEL.full_name, "GetModelStatus")


class GrpcServer:
    """One server. For one event loop."""

    def __init__(self, api: Api, admission: Admission, options: GrpcOptions) -> None:
        self._api = api
        self._admission = admission
        self._options = options
        self._health = health.aio.HealthServicer()
        self._within = TimeLimit(options.answer_s)
        self._message_within = TimeLimit(options.message_s)
        self._layouts = PerSignature(lambda one: layout_of(one, options.max_values))
        self._watching: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """
        Listen.

        Raises:
            Misconfigured: the port is taken, or the certificate does not load.
        """
        self._server = grpc.aio.server(
            options=_channel_options(self._options), maximum_concurrent_rpcs=self._options.max_calls
        )
        self._server.add_generic_rpc_handlers(self._handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [_PREDICTION.full_name, _MODEL.full_name, health.SERVICE_NAME]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)
        self.port = self._bound()
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Take no more calls; finish those under way."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._options.stop_s)

    def _bound(self) -> int:
        options = self._options
        address = f"{options.host}:{options.port}"
        try:
            if options.tls is None:
                port = self._server.add_insecure_port(address)
            else:
                key, cert = options.tls.key_file.read_bytes(), options.tls.cert_file.read_bytes()
                secrets = grpc.ssl_server_credentials([(key, cert)])
                port = self._server.add_secure_port(address, secrets)
        except (RuntimeError, OSError) as error:
            raise Misconfigured(f"cannot serve gRPC on {address}: {error}") from error
        if not port:
            raise Misconfigured(f"cannot serve gRPC on {address}: the certificate does not load")
        return int(port)

    async def _watch(self) -> None:
        """Health: the process serves; the models' services do once a model is there."""
        serving, absent = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        await self._health.set("", serving)
        while True:
            status = serving if self._api.has_model() else absent
            for name in (_PREDICTION.full_name, _MODEL.full_name):
                await self._health.set(name, status)
            await asyncio.sleep(LOOK_S)

    # --- the methods

    def _handlers(self) -> Sequence[Any]:
        return [
            grpc.method_handlers_generic_handler(
                _PREDICTION.full_name,
                {
                    "Predict": self._handler(_PREDICT, self._predict),
                    "GetModelMetadata": self._handler(_METADATA, self._metadata),
                },
            ),
            grpc.method_handlers_generic_handler(
                _MODEL.full_name, {"GetModelStatus": self._handler(_STATUS, self._status)}
            ),
        ]

    def _handler(self, method: _Method, act: Callable[[bytes, Call], Awaitable[bytes]]) -> Any:
        """A method as grpc calls it: let in, done, noted."""

        async def answer(_: Any, context: Any) -> Any:
            admission = self._admission
            pairs = context.invocation_metadata() or ()
            span = _traced(method, pairs)
            call = admission.call("grpc", method.route, _address(context.peer()), span)
            if call.trace is not None and call.trace.sampled:
                context.set_trailing_metadata(((TRACERESPONSE, call.trace.own.traceparent),))
            try:
                metadata = dict(pairs)
                await admission.admit(call, metadata.get("authorization"), Scope.PREDICT)
                data = await self._message(context)
                admission.hold(call, len(data))
                with self._within:
                    told = await act(data, call)
            except asyncio.CancelledError:  # the caller's deadline, or the caller is gone
                admission.refused(call, TimeoutError())
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is answered
                why = admission.refused(call, error)
                pause = () if why.retry_after_s is None else (_pushback(why.retry_after_s),)
                await context.abort(
                    getattr(grpc.StatusCode, why.code), why.message[:MAX_MESSAGE], pause
                )
            admission.answered(call)
            return told

        # Read by us: a malformed message is answered and noted as any other fault of a caller's.
        # As a stream, which is the same on the wire: of a unary call grpc waits for the message
        # without end, and leaves a call without one unanswered.
        return grpc.stream_unary_rpc_method_handler(answer)

    async def _message(self, context: Any) -> bytes:
        """
        The call's message.

        Raises:
            TimeoutError: it did not come in time.
            Rejected: the call ended without one.
        """
        # Shielded, since grpc writes into what the reader holds: it ends with the call. What it
        # still reads, or how that fails, is of no interest then.
        reading = asyncio.ensure_future(context.read())
        with self._message_within:
            data = await asyncio.shield(reading)
        if data is grpc.aio.EOF:
            raise Rejected(Reason.MISSING_FIELD, "the call holds no whole message")
        return bytes(data)

    async def _predict(self, data: bytes, call: Call) -> bytes:
        start = spec_stop(data)
        if start:
            choice, signature = _spec_of(data[:start])
            # Unknown names are told before the tensors are looked at.
            spec = signature_of(self._api.model(choice)[1].signatures, signature)
            layout = self._layouts.of(spec)
            if layout is not None and (plain := layout.scan(data, start)) is not None:
                found = await self._api.predict(choice, signature, plain, call.trace)
                return reply(_spec_bytes(choice.name, found.version, signature), found.outputs)
        return await self._predict_message(_read(predict_pb2.PredictRequest, data), call)

    async def _predict_message(self, request: Any, call: Call) -> bytes:
        """A call that is not plain."""
        choice, signature = _chosen(request.model_spec)
        signature_of(self._api.model(choice)[1].signatures, signature)
        inputs = arrays(request.inputs, self._options.max_values)
        found = await self._api.predict(choice, signature, inputs, call.trace)
        wanted = list(request.output_filter) or list(found.outputs)
        if unknown := sorted(set(wanted) - set(found.outputs)):
            detail = f"output_filter: no output {unknown[0]!r}, there are {sorted(found.outputs)}"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
        outputs = {name: found.outputs[name] for name in wanted}
        return reply(_spec_bytes(choice.name, found.version, signature), outputs)

    async def _metadata(self, data: bytes, _: Call) -> bytes:
        request = _read(get_model_metadata_pb2.GetModelMetadataRequest, data)
        fields = list(request.metadata_field)
        if fields != [SIGNATURE_DEF]:
            detail = f"metadata_field is {fields[:5]}, expected [{SIGNATURE_DEF!r}]"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
        found = self._api.metadata(_choice(request.model_spec))
        told = get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec=model_spec(found.name, found.version, "")
        )
        told.metadata[SIGNATURE_DEF].Pack(signature_map(found.signatures))
        return bytes(told.SerializeToString())

    async def _status(self, data: bytes, _: Call) -> bytes:
        request = _read(get_model_status_pb2.GetModelStatusRequest, data)
        kind = get_model_status_pb2.ModelVersionStatus
        told = get_model_status_pb2.GetModelStatusResponse(
            model_version_status=[
                kind(
                    version=one.version,
                    state=kind.AVAILABLE if one.loaded else kind.LOADING,
                    status={"error_code": 0, "error_message": ""},
                )
                for one in self._api.statuses(_choice(request.model_spec))
            ]
        )
        return bytes(told.SerializeToString())


def _traced(method: _Method, metadata: Sequence[tuple[str, str | bytes]]) -> Traced:
    return Traced(
        headers=carried(metadata),
        name=f"{method.service}/{method.name}",
        attributes=lambda: {
            "rpc.system.name": "grpc",
            "rpc.method": f"{method.service}/{method.name}",
        },
        status="rpc.response.status_code",
    )


def _channel_options(options: GrpcOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(options.shared)),  # otherwise a taken port is an error
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_metadata_size", options.max_metadata_bytes),
        ("grpc.max_concurrent_streams", options.max_streams),
        ("grpc.max_connection_idle_ms", options.idle_s * 1000),
        ("grpc.max_connection_age_ms", options.age_s * 1000),
        ("grpc.max_connection_age_grace_ms", round(options.answer_s * 1000)),
        # A peer that does not answer a ping is gone: its calls are dropped.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def _read(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise Rejected(Reason.UNDECODABLE, str(error)) from error


@lru_cache(maxsize=1_024)
def _spec_of(data: bytes) -> tuple[ModelChoice, str]:
    """What a message of nothing but its ModelSpec chooses."""
    return _chosen(_read(predict_pb2.PredictRequest, data).model_spec)


@lru_cache(maxsize=1_024)
def _spec_bytes(name: str, version: int, signature: str) -> bytes:
    return bytes(model_spec(name, version, signature).SerializeToString())


def _chosen(spec: Any) -> tuple[ModelChoice, str]:
    """Model and signature."""
    return _choice(spec), spec.signature_name or DEFAULT_SIGNATURE


def _choice(spec: Any) -> ModelChoice:
    chosen = spec.WhichOneof("version_choice")
    return ModelChoice(
        name=spec.name,
        version=spec.version.value if chosen == "version" else None,
        label=spec.version_label if chosen == "version_label" else None,
    )


def _pushback(seconds: float) -> tuple[str, str]:
    """When a client that retries by itself may do so (gRPC A6)."""
    return ("grpc-retry-pushback-ms", str(round(1000 * seconds)))


def _address(peer: str) -> str:
    """
    The host in what gRPC calls a peer.

    >>> _address("ipv4:10.0.0.1:5000"), _address("ipv6:%5B::1%5D:5000")
    ('10.0.0.1', '[::1]')
    """
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else peer
