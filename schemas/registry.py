"""Where schema ids come from: in memory, or any server that speaks Confluent's REST API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from schemas.errors import Misconfigured, Reason, RegistryUnavailable, Rejected
from schemas.subjects import RegistryFault, Subjects

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient


class Registry(Protocol):
    """
    Schema ids and texts.

    Implementations must pass `tests.contracts.registry.RegistryContract`.
    """

    def register(self, subject: str, schema_json: str) -> int:
        """The id of this schema under this subject, registered if it is new there.

        Raises:
            Misconfigured: not a schema, or incompatible with an earlier one of the subject.
            RegistryUnavailable: the registry cannot be asked, and the answer is not known.
        """

    def schema(self, schema_id: int) -> str:
        """The schema with this id.

        Raises:
            Rejected: UNKNOWN_SCHEMA; the registry says that there is none.
            RegistryUnavailable: the registry cannot be asked, and the answer is not known.
        """

    def compatible(self, subject: str, schema_json: str) -> bool:
        """Whether the subject would take this schema.

        Raises:
            Misconfigured: not a schema.
            RegistryUnavailable: the registry cannot be asked.
        """


class MemoryRegistry:
    """A registry in this process."""

    def __init__(self) -> None:
        self._subjects = Subjects()

    def register(self, subject: str, schema_json: str) -> int:
        try:
            return self._subjects.register(subject, schema_json).schema_id
        except RegistryFault as fault:
            raise Misconfigured(f"subject {subject}: {fault.message}") from fault

    def schema(self, schema_id: int) -> str:
        try:
            return self._subjects.schema(schema_id)
        except RegistryFault as fault:
            raise Rejected(Reason.UNKNOWN_SCHEMA, fault.message) from fault

    def compatible(self, subject: str, schema_json: str) -> bool:
        try:
            return not self._subjects.problems(subject, schema_json)
        except RegistryFault as fault:
            raise Misconfigured(f"subject {subject}: {fault.message}") from fault


class RemoteRegistry:
    """
    A registry over HTTP, through confluent-kafka's own client.

    What was answered once is never asked again (ids are for ever), so a registry that goes away
    stops only what is new.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        # Retries are the caller's: a Retryable error says so, with back-off of its own.
        self._options = {"url": url, "timeout": timeout_s, "max.retries": 0}
        self._ids: dict[tuple[str, str], int] = {}
        self._texts: dict[int, str] = {}

    def register(self, subject: str, schema_json: str) -> int:
        key = (subject, schema_json)
        if key not in self._ids:
            try:
                with self._client() as client:
                    self._ids[key] = client.register_schema(subject, _avro(schema_json))
            except Exception as error:
                raise self._mapped(error, f"subject {subject}") from error
        return self._ids[key]

    def schema(self, schema_id: int) -> str:
        if schema_id not in self._texts:
            try:
                with self._client() as client:
                    text = client.get_schema(schema_id).schema_str
            except Exception as error:
                if _status(error) == 404:
                    raise Rejected(
                        Reason.UNKNOWN_SCHEMA, f"{self._url} has no schema {schema_id}"
                    ) from error
                raise self._mapped(error, f"schema {schema_id}") from error
            self._texts[schema_id] = str(text)
        return self._texts[schema_id]

    def compatible(self, subject: str, schema_json: str) -> bool:
        try:
            with self._client() as client:
                return bool(client.test_compatibility(subject, _avro(schema_json)))
        except Exception as error:
            if _status(error) == 404:  # no such subject: it takes anything
                return True
            raise self._mapped(error, f"subject {subject}") from error

    def _client(self) -> SchemaRegistryClient:
        """A client for one question: questions are few, and no connection is left open."""
        # Imported late: the codec imports this module for its Protocol and must stay light.
        from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415

        return SchemaRegistryClient(self._options)

    def _mapped(self, error: Exception, about: str) -> Exception:
        status = _status(error)
        if status is not None and 400 <= status < 500 and status not in (408, 429):
            return Misconfigured(f"registry {self._url}, {about}: {error}")
        return RegistryUnavailable(f"registry {self._url}, {about}: {error}")


def _avro(schema_json: str) -> Schema:
    from confluent_kafka.schema_registry import Schema  # noqa: PLC0415

    return Schema(schema_json, "AVRO")


def _status(error: Exception) -> int | None:
    """The HTTP status of an answer; None when there was no answer."""
    status: Any = getattr(error, "http_status_code", None)
    return status if isinstance(status, int) and status > 0 else None
