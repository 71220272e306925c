"""
A small schema registry that speaks Confluent's REST API, for the local stack.

    python -m schemas.registry_server --port 18081 --store out/stack/registry/schemas.jsonl

Every change is a line of JSON in the store, on the disk before it is acknowledged; a restart reads
the lines again. A line that a crash cut short was never acknowledged and is dropped. One process
owns a store: it holds a lock on the file.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.errors import Misconfigured
from schemas.subjects import RegistryFault, Subjects, Version

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
STORE_ERROR = 50001
UNPROCESSABLE = 42201

Entry = dict[str, Any]


class StoredSubjects:
    """Subjects whose changes are on the disk before they are answered."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Misconfigured(f"{file} is in use by another registry") from error
        self.subjects = self._read()

    def change(self, act: Callable[[Subjects], tuple[Entry | None, Any]]) -> Any:
        """Act on the subjects and keep the entry that `act` gives with its answer, or neither."""
        entry, answer = act(self.subjects)
        if entry is not None:
            self._append(entry)
        return answer

    def close(self) -> None:
        """Release the store."""
        self._file.close()

    def _append(self, entry: Entry) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            self.subjects = self._read()
            raise RegistryFault(STORE_ERROR, f"Error while storing: {error}") from error

    def _read(self) -> Subjects:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file.fileno(), whole)
        subjects = Subjects()
        for line in data[:whole].splitlines():
            _apply(subjects, json.loads(line))
        return subjects


def _apply(subjects: Subjects, entry: Entry) -> None:
    """One line of the store."""
    match entry:
        case {"op": "register", "version": found}:
            subjects.restore(Version(**found))
        case {"op": "delete", "subject": subject, "version": version}:
            subjects.delete(subject, version)
        case {"op": "forget", "subject": subject, "version": version}:
            subjects.forget(subject, version)
        case {"op": "level", "subject": subject, "level": level}:
            subjects.set_level(subject, level)
        case {"op": "clear", "subject": subject}:
            subjects.clear_level(subject)
        case _:
            raise Misconfigured(f"the registry's store has an unknown line: {entry}")


class _Api:
    """The endpoints. Each answers a JSON value or raises RegistryFault."""

    def __init__(self, store: StoredSubjects) -> None:
        self._store = store

    @property
    def _subjects(self) -> Subjects:
        return self._store.subjects

    # --- schemas

    async def schema(self, request: Request) -> Any:
        schema_id = _id(request)
        return {"schema": self._subjects.schema(schema_id)}

    async def schema_text(self, request: Request) -> Any:
        return json.loads(self._subjects.schema(_id(request)))

    async def schema_versions(self, request: Request) -> Any:
        found = self._subjects.uses(_id(request))
        return [{"subject": v.subject, "version": v.version} for v in found]

    async def schema_subjects(self, request: Request) -> Any:
        return sorted({v.subject for v in self._subjects.uses(_id(request))})

    async def schemas(self, request: Request) -> Any:
        prefix = request.query_params.get("subjectPrefix", "")
        names = [name for name in self._subjects.names() if name.startswith(prefix)]
        latest = request.query_params.get("latestOnly") == "true"
        return [
            _version_json(self._subjects.version(name, str(number)))
            for name in names
            for number in self._subjects.versions(name)[-1 if latest else 0 :]
        ]

    # --- subjects

    async def names(self, request: Request) -> Any:
        prefix = request.query_params.get("subjectPrefix", "")
        return [name for name in self._subjects.names() if name.startswith(prefix)]

    async def lookup(self, request: Request) -> Any:
        schema = await _schema_of(request)
        return _version_json(self._subjects.lookup(_subject(request), schema))

    async def register(self, request: Request) -> Any:
        schema, subject = await _schema_of(request), _subject(request)

        def act(subjects: Subjects) -> tuple[Entry | None, Version]:
            known = subjects.versions(subject) if subject in subjects.names() else []
            made = subjects.register(subject, schema)
            new = made.version not in known
            return {"op": "register", "version": asdict(made)} if new else None, made

        made = self._store.change(act)
        return {**_version_json(made), "id": made.schema_id}

    async def versions(self, request: Request) -> Any:
        return self._subjects.versions(_subject(request))

    async def version(self, request: Request) -> Any:
        found = self._subjects.version(_subject(request), request.path_params["version"])
        return _version_json(found)

    async def version_text(self, request: Request) -> Any:
        found = self._subjects.version(_subject(request), request.path_params["version"])
        return json.loads(found.schema)

    async def referenced_by(self, request: Request) -> Any:
        self._subjects.version(_subject(request), request.path_params["version"])
        return []  # references are not supported

    async def delete(self, request: Request) -> Any:
        subject, version = _subject(request), request.path_params.get("version")
        for_good = request.query_params.get("permanent") == "true"

        def act(subjects: Subjects) -> tuple[Entry, list[int]]:
            gone = (subjects.forget if for_good else subjects.delete)(subject, version)
            op = "forget" if for_good else "delete"
            return {"op": op, "subject": subject, "version": version}, gone

        gone = self._store.change(act)
        return gone if version is None else gone[0]

    # --- compatibility

    async def compatible(self, request: Request) -> Any:
        schema = await _schema_of(request)
        version = request.path_params.get("version")
        problems = self._subjects.problems(_subject(request), schema, version)
        answer: dict[str, Any] = {"is_compatible": not problems}
        if request.query_params.get("verbose") == "true":
            answer["messages"] = problems
        return answer

    async def level(self, request: Request) -> Any:
        subject = request.path_params.get("subject")
        if subject is None:
            return {"compatibilityLevel": self._subjects.default_level}
        if request.query_params.get("defaultToGlobal") == "true":
            return {"compatibilityLevel": self._subjects.level(subject)}
        return {"compatibilityLevel": self._subjects.own_level(subject)}

    async def set_level(self, request: Request) -> Any:
        level = str((await _json_of(request)).get("compatibility", ""))
        subject = request.path_params.get("subject")
        entry = {"op": "level", "subject": subject, "level": level}
        self._store.change(lambda subjects: (entry, subjects.set_level(subject, level)))
        return {"compatibility": level}

    async def clear_level(self, request: Request) -> Any:
        subject = _subject(request)
        entry = {"op": "clear", "subject": subject}
        was = self._store.change(lambda subjects: (entry, subjects.clear_level(subject)))
        return {"compatibilityLevel": was}

    # --- what clients ask a server about itself

    async def root(self, request: Request) -> Any:
        return {}

    async def types(self, request: Request) -> Any:
        return ["AVRO"]

    async def mode(self, request: Request) -> Any:
        return {"mode": "READWRITE"}

    async def contexts(self, request: Request) -> Any:
        return ["."]


def create_app(store_file: Path) -> Starlette:
    """The registry as an ASGI application over one store file.

    Raises:
        Misconfigured: the store is in use, or is no registry's store.
    """
    api = _Api(StoredSubjects(store_file))
    s, v = "/subjects/{subject:path}", "/versions/{version}"
    table: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/", api.root),
        ("GET", "/schemas", api.schemas),
        ("GET", "/schemas/types", api.types),
        ("GET", "/schemas/ids/{id}", api.schema),
        ("GET", "/schemas/ids/{id}/schema", api.schema_text),
        ("GET", "/schemas/ids/{id}/versions", api.schema_versions),
        ("GET", "/schemas/ids/{id}/subjects", api.schema_subjects),
        ("POST", "/compatibility" + s + v, api.compatible),
        ("POST", "/compatibility" + s + "/versions", api.compatible),
        ("GET", s + v + "/schema", api.version_text),
        ("GET", s + v + "/referencedby", api.referenced_by),
        ("GET", s + v, api.version),
        ("DELETE", s + v, api.delete),
        ("GET", s + "/versions", api.versions),
        ("POST", s + "/versions", api.register),
        ("GET", "/subjects", api.names),
        ("POST", s, api.lookup),
        ("DELETE", s, api.delete),
        ("GET", "/config", api.level),
        ("PUT", "/config", api.set_level),
        ("GET", "/config/{subject:path}", api.level),
        ("PUT", "/config/{subject:path}", api.set_level),
        ("DELETE", "/config/{subject:path}", api.clear_level),
        ("GET", "/mode", api.mode),
        ("GET", "/mode/{subject:path}", api.mode),
        ("GET", "/contexts", api.contexts),
    ]
    return Starlette(
        routes=[Route(path, _endpoint(act), methods=[method]) for method, path, act in table],
        exception_handlers={RegistryFault: _fault, HTTPException: _http_fault},
    )


def _endpoint(act: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return _answer(await act(request))

    return answer


def _answer(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type=CONTENT_TYPE)


async def _fault(_: Request, error: Exception) -> Response:
    if not isinstance(error, RegistryFault):
        raise error
    body = {"error_code": error.code, "message": error.message}
    return _answer(body, error.http_status)


async def _http_fault(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    body = {"error_code": error.status_code, "message": f"HTTP {error.detail}"}
    return _answer(body, error.status_code)


def _subject(request: Request) -> str:
    return str(request.path_params["subject"])


def _id(request: Request) -> int:
    text = request.path_params["id"]
    if not text.isdecimal():
        raise HTTPException(404, f"no schema {text}")
    return int(text)


async def _json_of(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


async def _schema_of(request: Request) -> str:
    body = await _json_of(request)
    if body.get("schemaType") not in (None, "AVRO"):
        raise RegistryFault(UNPROCESSABLE, f"Invalid schema type {body['schemaType']}: only AVRO")
    if body.get("references"):
        raise RegistryFault(UNPROCESSABLE, "Invalid schema: references are not supported")
    return str(body.get("schema", ""))


def _version_json(found: Version) -> dict[str, Any]:
    return {
        "subject": found.subject,
        "version": found.version,
        "id": found.schema_id,
        "schemaType": "AVRO",
        "schema": found.schema,
    }


def main() -> None:
    """Serve one store on one port until told to stop."""
    parser = argparse.ArgumentParser(description="A small Confluent-compatible schema registry.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True, help="file of JSON lines")
    arguments = parser.parse_args()
    try:
        app = create_app(arguments.store)
    except Misconfigured as error:
        sys.exit(f"Misconfigured: {error}")
    sys.stderr.write(f"ready: registry on {arguments.host}:{arguments.port}\n")
    uvicorn.run(
        app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
