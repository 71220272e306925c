"""
The REST API as an ASGI application: TensorFlow Serving's paths for models, and those of Millstream
for recommendations and events. What a call may do is decided by `inference.admission`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Route

from features.declare import Array
from inference import asgi, rest_tensors
from inference.admission import Admission, Call, Traced
from inference.api import Api, ModelChoice
from inference.asgi import Answer, App, Heads, Receive, Send
from inference.auth import Scope
from inference.outcome import Outcome
from inference.rest_messages import (
    EventAnswer,
    EventBody,
    FailureAnswer,
    ModelAnswer,
    PredictBody,
    PredictHead,
    ProbeAnswer,
    RecommendBody,
    StatusAnswer,
    VersionAnswer,
    read,
)
from inference.rest_rows import Rows, reader_of
from inference.tensors import PerSignature, Signature, TensorSpec, signature_of
from inference.time_limit import TimeLimit
from inference.titles import Titles
from ingest.clock import Clock
from ingest.log import Headers
from ingest.trace_context import TRACEPARENT, TRACERESPONSE, TRACESTATE, carried
from ingest.tracing import Value
from schemas.errors import NotServed, Reason, Rejected

JSON: Final = "application/json"
PREDICT: Final = "tensorflow/serving/predict"  # how TensorFlow names the kind of a signature
THREAD_BYTES: Final = 64 << 10  # larger bodies are read in a thread: others are answered meanwhile
MAX_DIGITS: Final = 18  # of a version
_TF_NAMES: Final = {
    "int64": "DT_INT64",
    "int32": "DT_INT32",
    "float32": "DT_FLOAT",
    "string": "DT_STRING",
}
# What went wrong in HTTP itself, as metrics and programs are told.
_REASONS: Final = {404: "no-route", 405: "method", 408: "slow-body", 415: "content-type"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestPolicy:
    """Bounds of one call."""

    max_body_bytes: int = 4 << 20  # gRPC's own default
    body_s: float = 10.0  # in which what is left of a body must come, once it has begun
    answer_s: float = 30.0
    origins: tuple[str, ...] = ()  # of web pages that may call (CORS); "*": any

    def __post_init__(self) -> None:
        if self.max_body_bytes < 1:
            raise ValueError(f"max_body_bytes must be at least 1, got {self.max_body_bytes}")


@dataclass(frozen=True, slots=True)
class Given:
    """What an endpoint is called with."""

    call: Call
    params: Mapping[str, str]  # of the path
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One route. `name` labels metrics."""

    method: str
    path: str
    name: str
    scope: Scope | None
    act: Callable[[Given], Awaitable[Answer]]
    open: bool = False  # to everybody, without token and quota


@dataclass(frozen=True, slots=True, kw_only=True)
class RestParts:
    """What the application works with."""

    api: Api
    admission: Admission
    titles: Titles
    clock: Clock
    description: bytes  # OpenAPI's document
    policy: RestPolicy = field(default_factory=RestPolicy)


def create_app(parts: RestParts) -> App:
    """The application. For one event loop."""
    rest = _Rest(parts)
    cors = {
        "allow_origins": list(parts.policy.origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["Authorization", "Content-Type", TRACEPARENT, TRACESTATE],
        "expose_headers": [TRACERESPONSE],
    }
    routes = [
        # An instance: starlette would wrap a function.
        Route(one.path, _Endpoint(rest, one), methods=[one.method])
        for one in rest.endpoints()
    ]
    return asgi.application(routes, rest.unrouted, cors if parts.policy.origins else None)


class _Endpoint:
    """A route as an ASGI application."""

    def __init__(self, rest: _Rest, one: Endpoint) -> None:
        self._rest, self._one = rest, one

    async def __call__(self, scope: asgi.Scope, receive: Receive, send: Send) -> None:
        await asgi.send_answer(send, await self._rest.answer(self._one, scope, receive))


class _Rest:
    """The endpoints. Each answers or raises; `_answer` turns what was raised into an answer."""

    def __init__(self, parts: RestParts) -> None:
        self._parts = parts
        self._api = parts.api
        self._within = TimeLimit(parts.policy.answer_s)
        self._readers = PerSignature(reader_of)

    def endpoints(self) -> Sequence[Endpoint]:
        """All routes, those first that are called most."""
        model = "/v1/models/{name}"
        chosen = (model, model + "/versions/{version}", model + "/labels/{label}")
        table: list[tuple[str, str, str, Scope | None, Any]] = [
            ("POST", "/v1/recommend", "recommend", Scope.RECOMMEND, self._recommend),
            ("POST", "/v1/events", "events", Scope.EVENTS, self._event),
            *(("POST", p + ":predict", "predict", Scope.PREDICT, self._predict) for p in chosen),
            *(("GET", p + "/metadata", "metadata", Scope.PREDICT, self._metadata) for p in chosen),
            *(("GET", p, "status", Scope.PREDICT, self._status) for p in chosen),
            ("GET", "/healthz", "healthz", None, self._healthz),
            ("GET", "/readyz", "readyz", None, self._readyz),
            ("GET", "/openapi.json", "openapi", None, self._openapi),
        ]
        return [
            Endpoint(method=method, path=path, name=name, scope=scope, act=act, open=scope is None)
            for method, path, name, scope, act in table
        ]

    def unrouted(self, scope: asgi.Scope, error: HTTPException) -> Answer:
        """A path or method that is none of ours."""
        call = self._parts.admission.call("http", "other", asgi.address(scope))
        return self._failure(call, error, headers=dict(error.headers or {}))

    # --- what every call goes through

    async def answer(self, one: Endpoint, scope: asgi.Scope, receive: Receive) -> Answer:
        """What one call gets, whatever goes wrong."""
        admission, heads = self._parts.admission, Heads(scope)
        traced = _traced(one, scope, heads)
        call = admission.call("http", one.name, asgi.address(scope), traced)
        read_all = False
        try:
            if not one.open:
                await admission.admit(call, heads.get("authorization"), one.scope)
            body = await self._body(call, heads, receive) if one.method == "POST" else b""
            read_all = True
            with self._within:
                found = await one.act(Given(call, scope["path_params"], body))
        except asyncio.CancelledError:  # the server stops, and it takes too long
            admission.refused(call, TimeoutError())
            raise
        except ConnectionResetError as gone:
            return self._failure(call, HTTPException(408, str(gone)), close=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is answered
            return self._failure(call, error, close=not read_all)
        admission.answered(call)
        return _told(call, found)

    async def _body(self, call: Call, heads: Heads, receive: Receive) -> bytes:
        kind = heads.get("content-type").partition(";")[0].strip().lower()
        if kind != JSON:
            raise HTTPException(415, f"the Content-Type is {kind[:100]!r}, expected {JSON}")
        if (packed := heads.get("content-encoding", "identity")) != "identity":
            raise HTTPException(415, f"the Content-Encoding is {packed[:100]!r}, expected none")
        limit = self._parts.policy.max_body_bytes
        announced = heads.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise Rejected(Reason.TOO_LARGE, f"a body of {announced} bytes, at most {limit}")

        def hold(size: int) -> None:
            self._parts.admission.hold(call, size)
            if call.size_bytes > limit:
                raise Rejected(Reason.TOO_LARGE, f"a body of more than {limit} bytes")

        try:
            return await asgi.read_body(receive, hold, self._parts.policy.body_s)
        except TimeoutError as error:
            raise HTTPException(408, "the body did not come in time") from error

    def _failure(
        self,
        call: Call,
        error: Exception,
        *,
        close: bool = False,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """The answer to a call that failed. `close`: what is left of its body is not waited for."""
        told = self._parts.admission.refused(call, error, _in_http(error))
        given = dict(headers or {})
        if close:
            given["Connection"] = "close"
        if told.status == 401:
            given["WWW-Authenticate"] = "Bearer"
        if told.retry_after_s is not None:
            given["Retry-After"] = str(max(1, round(told.retry_after_s + 0.5)))
        failed = FailureAnswer(error=told.message, reason=told.reason)
        return _told(call, _json(failed, told.status, given))

    # --- the routes

    async def _recommend(self, given: Given) -> Answer:
        asked: RecommendBody = await _read(RecommendBody, given.body)
        call, wanted = given.call, asked.request()
        call.request_id = wanted.request_id
        answer = await self._api.recommend(wanted, call.trace)
        if asked.titles:
            titles = self._parts.titles.of(item.item_id for item in answer.items)
            for item in answer.items:
                item.title = titles.get(item.item_id, "")
        return _json(answer)

    async def _event(self, given: Given) -> Answer:
        told: EventBody = await _read(EventBody, given.body)
        event = told.event(self._parts.clock.now_ms())
        place = await self._api.publish(event)
        return _json(
            EventAnswer(event_id=event.event_id, partition=place.partition, offset=place.offset)
        )

    async def _predict(self, given: Given) -> Answer:
        body = given.body
        head: PredictHead = await _read(PredictHead, body)
        rows = head.instances
        by_rows = isinstance(rows, msgspec.Raw)
        if by_rows == isinstance(head.inputs, msgspec.Raw):
            detail = "give either instances (rows) or inputs (columns)"
            raise Rejected(Reason.MISSING_FIELD, detail)
        choice = _choice(given.params)
        _, model = self._api.model(choice)
        signature = signature_of(model.signatures, head.signature_name)
        inputs: Mapping[str, Array] | Rows | None = None
        if isinstance(rows, msgspec.Raw) and len(body) < THREAD_BYTES:
            reader = self._readers.of(signature)
            inputs = None if reader is None else reader.read(rows)
        if inputs is None:
            inputs = await _aside(len(body), lambda: _tensors(body, signature))
        found = await self._api.predict(choice, head.signature_name, inputs, given.call.trace)
        write = rest_tensors.to_rows if by_rows else rest_tensors.to_columns
        size = sum(array.nbytes for array in found.outputs.values())
        return Answer(body=await _aside(size, lambda: write(found.outputs)), kind=JSON)

    async def _status(self, given: Given) -> Answer:
        fine = StatusAnswer(error_code="OK", error_message="")
        versions = [
            VersionAnswer(
                version=str(one.version),
                state="AVAILABLE" if one.loaded else "LOADING",
                status=fine,
                labels=list(one.labels),
            )
            for one in self._api.statuses(_choice(given.params))
        ]
        return _json(ModelAnswer(model_version_status=versions))

    async def _metadata(self, given: Given) -> Answer:
        found = self._api.metadata(_choice(given.params))
        signatures = {name: _signature(one) for name, one in found.signatures.items()}
        spec = {"name": found.name, "signature_name": "", "version": str(found.version)}
        signature_def = {"signature_def": {"signature_def": signatures}}
        return _json({"model_spec": spec, "metadata": signature_def})

    async def _healthz(self, _: Given) -> Answer:
        return _json(ProbeAnswer(status="ok"))

    async def _readyz(self, _: Given) -> Answer:
        ready = self._api.ready()
        status = "ready" if ready else "starting"
        return _json(ProbeAnswer(status=status), 200 if ready else 503)

    async def _openapi(self, _: Given) -> Answer:
        return Answer(body=self._parts.description, kind=JSON)


def _traced(one: Endpoint, scope: asgi.Scope, heads: Heads) -> Traced | None:
    """Probes and the description are asked for every few seconds: they would be most traces."""
    if one.open:
        return None
    headers: Headers = ()
    if heads.get(TRACEPARENT):  # few calls have one
        headers = carried((name.decode("latin-1"), value) for name, value in scope["headers"])
    return Traced(
        headers=headers,
        name=f"{one.method} {one.path}",
        attributes=partial(_attributes, one, scope),
        status="http.response.status_code",
    )


def _attributes(one: Endpoint, scope: asgi.Scope) -> dict[str, Value]:
    """Of a call's span."""
    return {
        "http.request.method": one.method,
        "http.route": one.path,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
    }


def _told(call: Call, answer: Answer) -> Answer:
    """With the name of the call's span, where it has one."""
    if call.trace is None or not call.trace.sampled:
        return answer
    own = {TRACERESPONSE: call.trace.own.traceparent}
    return replace(answer, headers={**answer.headers, **own})


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(body=msgspec.json.encode(value), kind=JSON, status=status, headers=headers or {})


async def _read(kind: type[msgspec.Struct], body: bytes) -> Any:
    return await _aside(len(body), lambda: read(kind, body))


def _tensors(body: bytes, signature: Signature) -> dict[str, Array]:
    """Of a call that is not plain."""
    asked: PredictBody = read(PredictBody, body)
    if isinstance(asked.instances, msgspec.UnsetType):
        return rest_tensors.from_columns(asked.inputs, signature)
    return rest_tensors.from_rows(asked.instances, signature)


async def _aside(size_bytes: int, work: Callable[[], Any]) -> Any:
    """Work in proportion to a size: where that is large, in a thread."""
    return work() if size_bytes < THREAD_BYTES else await asyncio.to_thread(work)


def _in_http(error: Exception) -> Outcome | None:
    """What HTTP itself says; None: the error is not of HTTP."""
    if not isinstance(error, HTTPException):
        return None
    return Outcome(
        reason=_REASONS.get(error.status_code, "http"),
        status=error.status_code,
        code="INVALID_ARGUMENT",
        message=error.detail,
    )


def _choice(given: Mapping[str, str]) -> ModelChoice:
    version: str | None = given.get("version")
    if version is not None and not (version.isdecimal() and len(version) <= MAX_DIGITS):
        raise NotServed(f"no version {version[:100]!r}: versions are numbers")
    return ModelChoice(
        name=given["name"],
        version=None if version is None else int(version),
        label=given.get("label"),
    )


def _signature(signature: Signature) -> dict[str, Any]:
    """As TensorFlow Serving writes a SignatureDef."""
    return {
        "inputs": {name: _tensor_info(spec) for name, spec in signature.inputs.items()},
        "outputs": {name: _tensor_info(spec) for name, spec in signature.outputs.items()},
        "method_name": PREDICT,
        "defaults": {},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    sizes = [{"size": str(-1 if size is None else size), "name": ""} for size in spec.shape]
    shape = {"dim": sizes, "unknown_rank": False}
    return {"dtype": _TF_NAMES[spec.dtype], "tensor_shape": shape, "name": ""}
