"""The OpenAPI 3.1 document of the REST API, from its messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from inference import rest_messages as messages
from inference.auth import Scope
from inference.told import RecommendAnswer

_REF: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
# Of every route that takes a token; 408, 413 and 415 only of those with a body.
_FAILURES: Final = {
    "400": "The call is malformed or asks for something that is not served.",
    "401": "There is no token, or it does not hold.",
    "403": "The token lacks the scope.",
    "404": "No such model, version, label or signature.",
    "429": "The client's quota is used up, or more calls wait than may.",
    "500": "The model failed, or a fault of ours.",
    "503": "The broker or the registry does not answer, or the instance has too many connections.",
    "504": "No answer in time.",
}
_BODY_FAILURES: Final = {
    "408": "The body did not come in time.",
    "413": "The body, or a tensor in it, is larger than is taken.",
    "415": "The Content-Type is not application/json.",
}
_TENSORS: Final[dict[str, Any]] = {
    "type": "object",
    "description": "`predictions` (rows) or `outputs` (columns), as TensorFlow Serving gives them.",
    "properties": {"predictions": {"type": "array"}, "outputs": {}},
}
_METADATA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "As TensorFlow Serving gives it.",
    "properties": {"model_spec": {"type": "object"}, "metadata": {"type": "object"}},
    "required": ["model_spec", "metadata"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """One operation of the document."""

    name: str
    summary: str
    answer: dict[str, Any]
    scope: Scope | None = None
    body: type | None = None


def document(model_name: str) -> dict[str, Any]:
    """The whole document. Its examples name this model."""
    kinds = [
        messages.RecommendBody,
        RecommendAnswer,
        messages.EventBody,
        messages.EventAnswer,
        messages.PredictBody,
        messages.ModelAnswer,
        messages.ProbeAnswer,
        messages.FailureAnswer,
    ]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Millstream",
            "version": "1",
            "description": "Recommendations, events, and TensorFlow Serving's API for models.",
        },
        "paths": _paths(model_name),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def encoded(model_name: str) -> bytes:
    """The document as it is served."""
    return json.dumps(document(model_name)).encode()


def _paths(model_name: str) -> dict[str, Any]:
    predict = _Operation(
        name="predict",
        summary="Call a signature of a model with tensors",
        answer=_TENSORS,
        scope=Scope.PREDICT,
        body=messages.PredictBody,
    )
    metadata = _Operation(
        name="metadata",
        summary="The signatures of a version",
        answer=_METADATA,
        scope=predict.scope,
    )
    status = _Operation(
        name="status",
        summary="The versions of the release",
        answer=_ref(messages.ModelAnswer),
        scope=predict.scope,
    )
    paths: dict[str, Any] = {}
    for suffix, ways in _ways(model_name):
        path = f"/v1/models/{{name}}{suffix}"
        kind = suffix.strip("/").partition("/")[0]
        paths[path + ":predict"] = {"parameters": ways, "post": _described(predict, kind)}
        paths[path + "/metadata"] = {"parameters": ways, "get": _described(metadata, kind)}
        paths[path] = {"parameters": ways, "get": _described(status, kind)}
    recommend = _Operation(
        name="recommend",
        summary="Items for a user; the answer is recorded for learning",
        answer=_ref(RecommendAnswer),
        scope=Scope.RECOMMEND,
        body=messages.RecommendBody,
    )
    events = _Operation(
        name="events",
        summary="Say what a user did; tells where it stands on the log",
        answer=_ref(messages.EventAnswer),
        scope=Scope.EVENTS,
        body=messages.EventBody,
    )
    probe = _ref(messages.ProbeAnswer)
    healthz = _Operation(name="healthz", summary="Whether the process answers", answer=probe)
    readyz = _Operation(name="readyz", summary="Whether items and model are read", answer=probe)
    itself = _Operation(name="openapi", summary="This document", answer={"type": "object"})
    paths["/v1/recommend"] = {"post": _described(recommend)}
    paths["/v1/events"] = {"post": _described(events)}
    paths["/healthz"] = {"get": _described(healthz)}
    paths["/readyz"] = {"get": _described(readyz)}
    paths["/readyz"]["get"]["responses"]["503"] = _response("They are being read.", probe)
    paths["/openapi.json"] = {"get": _described(itself)}
    return paths


def _ways(model_name: str) -> Sequence[tuple[str, list[dict[str, Any]]]]:
    """How a version is chosen: the path's suffix and its parameters."""
    name = _parameter("name", {"type": "string", "minLength": 1}, model_name)
    version = _parameter("version", {"type": "integer", "minimum": 0}, 1)
    label = _parameter("label", {"type": "string", "minLength": 1}, "stable")
    return [
        ("", [name]),
        ("/versions/{version}", [name, version]),
        ("/labels/{label}", [name, label]),
    ]


def _parameter(name: str, schema: dict[str, Any], example: object) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _described(one: _Operation, kind: str = "") -> dict[str, Any]:
    """`kind`: which of the operation's paths this is."""
    responses = {"200": _response("Done.", one.answer)}
    failures = {
        **(_FAILURES if one.scope else {}),
        **(_BODY_FAILURES if one.body else {}),
    }
    failure = _ref(messages.FailureAnswer)
    responses |= {code: _response(text, failure) for code, text in sorted(failures.items())}
    found: dict[str, Any] = {
        "operationId": f"{one.name}_{kind}" if kind else one.name,
        "summary": one.summary,
        "responses": responses,
    }
    if one.scope:
        found["security"] = [{"token": [one.scope.value]}]
    if one.body:
        content = {_JSON: {"schema": _ref(one.body)}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": schema}}}


def _ref(kind: type) -> dict[str, Any]:
    return {"$ref": _REF.format(name=kind.__name__)}
