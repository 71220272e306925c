import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from ingest.clock import SystemClock
from schemas.codec import Codec, schema_of
from schemas.errors import RegistryUnavailable
from schemas.events import EventType, UserEvent
from schemas.registry import Registry, RemoteRegistry
from tests.contracts.registry import A, B, RegistryContract, record


@contextmanager
def serving(store: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "schemas.registry_server", "--port", str(port), "--store", store]
    )
    url = f"http://127.0.0.1:{port}"
    clock = SystemClock()
    deadline = clock.monotonic_s() + 20
    try:
        while call(url, "GET", "/")[0] != 200:
            assert process.poll() is None, f"exit {process.returncode}"
            assert clock.monotonic_s() < deadline
            clock.sleep(0.05)
        yield url, process
    finally:
        process.kill()
        process.wait()


def call(url: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except urllib.error.URLError:
        return 0, None


@pytest.fixture
def client(url: str) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": url}) as made:
        yield made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry") / "schemas.jsonl") as (address, _):
        yield address


class TestRegistryServer(RegistryContract):
    @pytest.fixture
    def registry(self, url: str) -> Registry:
        return RemoteRegistry(url, timeout_s=10)

    @pytest.fixture
    def unique(self, unique_name: Callable[[str], str]) -> Callable[[str], str]:
        return unique_name


def test_everything_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    store = tmp_path / "schemas.jsonl"
    with serving(store) as (url, process), SchemaRegistryClient({"url": url}) as client:
        ids = [client.register_schema(f"s{i}", Schema(record(A, name=f"R{i}"))) for i in range(5)]
        client.register_schema("s0", Schema(record(A, B, name="R0")))
        call(url, "PUT", "/config/s1", {"compatibility": "FULL"})
        client.delete_subject("s4")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with store.open("ab") as torn:
        torn.write(b'{"op": "regis')
    with serving(store) as (url, _), SchemaRegistryClient({"url": url}) as client:
        assert client.get_subjects() == ["s0", "s1", "s2", "s3"]
        assert client.get_versions("s0") == [1, 2]
        assert [json.loads(client.get_schema(i).schema_str)["name"] for i in ids] == [
            f"R{i}" for i in range(5)
        ]
        assert call(url, "GET", "/config/s1")[1] == {"compatibilityLevel": "FULL"}
        assert client.register_schema("new", Schema(record(A, name="New"))) == max(ids) + 2


def test_a_store_has_one_owner(tmp_path: Path) -> None:
    store = tmp_path / "schemas.jsonl"
    with serving(store):
        command = [sys.executable, "-m", "schemas.registry_server", "--port", "1", "--store", store]
        second = subprocess.run(command, capture_output=True, check=False, text=True)
    assert second.returncode != 0
    assert "in use by another registry" in second.stderr


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/schemas/ids/999", None, 404, 40403),
        ("GET", "/subjects/none/versions", None, 404, 40401),
        ("GET", "/subjects/known/versions/9", None, 404, 40402),
        ("GET", "/subjects/known/versions/zero", None, 422, 42202),
        ("POST", "/subjects/known", {"schema": record(A, name="Other")}, 404, 40403),
        ("POST", "/subjects/none", {"schema": record(A)}, 404, 40401),
        ("POST", "/subjects/known/versions", {"schema": "{"}, 422, 42201),
        ("POST", "/subjects/known/versions", {"schema": '"int"'}, 409, 409),
        ("PUT", "/config", {"compatibility": "PERFECT"}, 422, 42203),
        ("GET", "/config/known", None, 404, 40408),
        ("DELETE", "/subjects/known?permanent=true", None, 404, 40405),
        ("GET", "/nowhere", None, 404, 404),
    ],
)
def test_errors_carry_confluents_codes(  # type: ignore[no-untyped-def]
    url: str, method, path, body, status, code
) -> None:
    call(url, "POST", "/subjects/known/versions", {"schema": record(A)})
    got, answer = call(url, method, path, body)
    assert (got, answer["error_code"]) == (status, code)
    assert answer["message"]


def test_confluents_serializer_and_our_codec_read_each_other(
    url: str, client: SchemaRegistryClient, unique_name: Callable[[str], str]
) -> None:
    topic = unique_name("user-events")
    context = SerializationContext(topic, MessageField.VALUE)
    codec = Codec(RemoteRegistry(url, timeout_s=10), UserEvent, topic)
    event = UserEvent(event_id="e", user_id="u", event_type=EventType.LIKE, event_time=9)
    theirs = AvroSerializer(client, schema_of(UserEvent))
    plain = {**asdict(event), "event_type": "LIKE", "profile": []}
    data = theirs(plain, context)
    assert codec.decode(data) == event
    assert codec.encode(event) == data
    back = AvroDeserializer(client)(codec.encode(event), context)
    assert back is not None
    assert back["user_id"] == "u"


def test_the_whole_client_api_answers(
    client: SchemaRegistryClient, unique_name: Callable[[str], str]
) -> None:
    subject = unique_name("with/slash value")
    schema_id = client.register_schema(subject, Schema(record(A, name="Whole")))
    assert client.lookup_schema(subject, Schema(record(A, name="Whole"))).schema_id == schema_id
    assert client.get_latest_version(subject).version == 1
    assert client.get_version(subject, 1).schema_id == schema_id
    assert client.get_schema_types() == ["AVRO"]
    assert client.get_compatibility() == "BACKWARD"
    client.set_compatibility(subject, "NONE")
    assert client.get_compatibility(subject) == "NONE"
    assert client.test_compatibility(subject, Schema('"int"'))
    assert [v.subject for v in client.get_schema_versions(schema_id)] == [subject]
    assert client.get_global_mode() == "READWRITE"
    assert client.delete_subject(subject) == [1]
    assert client.delete_subject(subject, permanent=True) == [1]
    assert subject not in client.get_subjects()


def test_what_was_answered_once_outlives_the_registry(tmp_path: Path) -> None:
    with serving(tmp_path / "schemas.jsonl") as (url, _):
        registry = RemoteRegistry(url, timeout_s=2)
        schema_id = registry.register("s", record(A))
        registry.schema(schema_id)
    assert registry.register("s", record(A)) == schema_id
    assert json.loads(registry.schema(schema_id)) == json.loads(record(A))
    with pytest.raises(RegistryUnavailable):
        registry.schema(schema_id + 1)
    with pytest.raises(RegistryUnavailable):
        registry.register("t", record(A, B))
