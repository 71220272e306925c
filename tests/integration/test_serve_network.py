"""`millstream serve` with both ports open, on real Kafka, Valkey and a signed model, over TLS."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from features.catalog import CATALOG
from features.hashing import hash_ids
from inference.operator import promote
from ingest.log import TopicPartition
from schemas.codec import Decoder
from schemas.events import UserEvent
from tests.network_world import retrieve_inputs
from tests.published import publish
from tests.serving_process import ITEMS, PARTITIONS, Place, Server, settings_for
from tests.tls_proxy import Authority
from tests.tokens import Issuer

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf]

MODEL = "recommender"
QUOTA = 40  # an hour, of one client


@dataclass
class Front:
    """A serving process and what its callers need."""

    place: Place
    server: Server
    issuer: Issuer
    trusted: Path
    ports: dict[str, int]

    def call(self, method: str, path: str, body: Any = None, **claims: Any) -> tuple[int, Any]:
        """Over HTTPS, with a token."""
        tls = ssl.create_default_context(cafile=str(self.trusted))
        made = http.client.HTTPSConnection("127.0.0.1", self.ports["http"], timeout=30, context=tls)
        headers = {"Authorization": self.issuer.bearer(**claims)}
        headers["Content-Type"] = "application/json"
        try:
            made.request(method, path, None if body is None else json.dumps(body), headers)
            answer = made.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            made.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    from tests.tiny_model import export

    folder = tmp_path_factory.mktemp("tiny") / "model"
    export(folder, CATALOG, hash_ids(ITEMS))
    return folder


@pytest.fixture(scope="module")
def front(kafka, valkey, registry, tmp_path_factory, exported, eventually) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    settings = settings_for(kafka, valkey, registry, f"net-{folder.name}", folder)
    place = Place(settings)
    for _ in range(2):
        publish(settings, exported)
    promote(settings, 1, "first")
    issuer, authority = Issuer(folder), Authority(folder, "authority")
    identity = authority.issue("serve")
    (folder / "logs").mkdir()
    server = Server(
        settings,
        folder / "logs",
        "0",
        *("--http-port=0", "--grpc-port=0", f"--quota={QUOTA}/hour"),
        *(f"--tls-cert={identity.certificate}", f"--tls-key={identity.key}"),
        *(f"--token-jwks={issuer.jwks_file}", f"--token-secret={issuer.secret_file}"),
    )
    try:
        eventually(server.ready, timeout_s=120)
        told = re.search(r"http on port (\d+), grpc on port (\d+)", server.errors.read_text())
        assert told, server.errors.read_text()
        ports = {"http": int(told[1]), "grpc": int(told[2])}
        yield Front(place, server, issuer, authority.file, ports)
        assert server.stop() == 0
    finally:
        server.close()
        place.close()


def test_a_recommendation_comes_from_the_released_model_and_is_on_the_log(front, eventually):
    body = {"user_id": "ann", "k": 3, "titles": True, "request_id": "over-https"}
    status, found = front.call("POST", "/v1/recommend", body, algorithm="EdDSA")
    assert (status, found["status"], found["model_version"]) == (200, "OK", 1)
    assert [one["title"] for one in found["items"]] == ["ITEM-0", "ITEM-1", "ITEM-2"]
    eventually(lambda: front.place.read() and front.place.counts()["over-https"] == 1)
    recorded = next(a for a in front.place.answers if a.value.request_id == "over-https")
    assert [item.item_id for item in recorded.value.items] == ITEMS[:3]
    assert recorded.value.user_floats


def test_what_only_training_needs_is_not_loaded(front):
    """Keras takes half as long to import as TensorFlow, and imports matplotlib."""
    mapped = Path(f"/proc/{front.server.pid}/maps").read_text()
    assert "/tensorflow/" in mapped
    assert "/matplotlib/" not in mapped


def test_requests_of_the_log_are_answered_beside_those_of_the_network(front, eventually):
    front.place.ask(range(50))
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(front.call, "POST", "/v1/recommend", {"user_id": f"u{n}"}, sub=f"s{n % 3}")
            for n in range(20)
        ]
        assert {call.result(30)[0] for call in calls} == {200}
    names = [f"r{n}" for n in range(50)]
    eventually(lambda: front.place.read() and set(names) <= front.place.counts().keys())
    assert {front.place.counts()[name] for name in names} == {1}


def test_an_event_stands_on_kafka_where_the_answer_says(front):
    body = {"user_id": "ann", "event_type": "CLICK", "item_id": "item-7", "event_id": "e-net"}
    status, told = front.call("POST", "/v1/events", body)
    assert status == 200, told
    source = front.place.new_source()
    topic = front.place.topics.user_events
    source.assign({TopicPartition(topic, told["partition"]): told["offset"]})
    batch = source.poll(1, 20)
    source.close()
    event = Decoder(front.place.registry, UserEvent).decode(batch.values[0])
    assert (event.event_id, event.user_id, batch.keys[0]) == ("e-net", "ann", b"ann")
    assert told["partition"] < PARTITIONS


def test_tensorflow_serving_s_client_works_over_tls(front):
    trusted = grpc.ssl_channel_credentials(front.trusted.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{front.ports['grpc']}", trusted) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = MODEL
        for name, array in retrieve_inputs(rows=2, k=3).items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        bearer = [("authorization", front.issuer.bearer(algorithm="RS256"))]
        found = stub.Predict(request, 30, metadata=bearer)
    expected = hash_ids(ITEMS[:3]).view("int64").tolist()
    assert tf.make_ndarray(found.outputs["items"]).tolist() == [expected] * 2


def test_a_release_is_seen_over_the_network_at_once(front, eventually):
    def stable() -> str:
        status, found = front.call("GET", f"/v1/models/{MODEL}/labels/stable", sub="watcher")
        assert status == 200, found
        return found["model_version_status"][0]["version"]

    assert stable() == "1"
    promote(front.place.settings, 2, "second")
    clients = itertools.count()  # each has a whole quota

    def answered_by() -> int:
        client = f"client-{next(clients)}"
        return front.call("POST", "/v1/recommend", {"user_id": "x"}, sub=client)[1]["model_version"]

    eventually(lambda: answered_by() == 2)
    assert stable() == "2"


def test_a_client_over_its_quota_is_told_and_others_are_not(front):
    calls = [front.call("GET", f"/v1/models/{MODEL}", sub="greedy")[0] for _ in range(QUOTA + 5)]
    assert calls == [200] * QUOTA + [429] * 5
    assert front.call("GET", f"/v1/models/{MODEL}", sub="modest")[0] == 200


def test_an_unknown_certificate_or_no_tls_gets_nothing(front):
    with socket.create_connection(("127.0.0.1", front.ports["http"]), 10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(4096).startswith(b"HTTP")
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection(
            "127.0.0.1", front.ports["http"], timeout=10, context=ssl.create_default_context()
        ).request("GET", "/healthz")
    assert front.call("GET", "/readyz") == (200, {"status": "ready"})


def test_the_audit_names_no_client(front):
    front.call("POST", "/v1/recommend", {"user_id": "private-user", "k": 0}, sub="private-client")
    text = front.server.errors.read_text()
    assert "audit.refused" in text
    assert "private-" not in text
