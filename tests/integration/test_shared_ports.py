"""One `millstream serve` takes over from another on the same ports, and no caller notices."""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from deploy import ports
from features.catalog import CATALOG
from features.hashing import hash_ids
from inference.operator import promote
from tests.published import publish
from tests.serving_process import ITEMS, Place, Server, settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf]

RESET = 2  # connections that wait at a socket when it is closed: the kernel resets them


@dataclass
class Caller:
    """Asks again and again, over a new connection each time, until it is told to stop."""

    port: int
    answers: Counter[tuple[int, int, str | None]] = field(default_factory=Counter)
    reset: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.done.is_set():
            self.ask()

    def ask(self) -> None:
        made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        body = json.dumps({"user_id": "ann", "k": 3})
        try:
            made.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
            found = made.getresponse()
            told = json.loads(found.read())
            self.answers[
                found.status, told.get("model_version", 0), told.get("fallback_reason")
            ] += 1
        except ConnectionError:
            self.reset += 1
        finally:
            made.close()


@dataclass
class Pair:
    """Where processes serve the same ports."""

    place: Place
    logs: Path
    numbers: tuple[int, int]
    started: list[Server] = field(default_factory=list)

    def start(self, *more: str) -> Server:
        """One more, with a name of its own."""
        http_port, grpc_port = self.numbers
        words = (f"--http-port={http_port}", f"--grpc-port={grpc_port}", *more)
        server = Server(self.place.settings, self.logs, str(len(self.started)), *words)
        self.started.append(server)
        return server


@pytest.fixture
def pair(kafka, valkey, registry, tmp_path) -> Iterator[Pair]:
    from tests.tiny_model import export

    settings = settings_for(kafka, valkey, registry, f"shared-{tmp_path.name}", tmp_path)
    export(tmp_path / "model", CATALOG, hash_ids(ITEMS))
    place = Place(settings)
    publish(settings, tmp_path / "model")
    promote(settings, 1, "first")
    (tmp_path / "logs").mkdir()
    with ports.reserve(2) as reserved:
        numbers = reserved.numbers
    found = Pair(place, tmp_path / "logs", (numbers[0], numbers[1]))
    yield found
    for server in found.started:
        server.close()
    place.close()


def answered(server: Server) -> float:
    """Calls over HTTP that the process has answered."""
    told = re.search(r"metrics on port (\d+)", server.errors.read_text())
    assert told
    with urllib.request.urlopen(f"http://127.0.0.1:{told[1]}/metrics", timeout=10) as found:
        lines = found.read().decode().splitlines()
    named = (line for line in lines if line.startswith("millstream_network_requests_total{"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in named if 'protocol="http"' in line)


def status(port: int) -> int:
    """How many versions gRPC tells of."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "recommender"
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        return len(stub.GetModelStatus(request, 20).model_version_status)


def test_the_next_one_takes_over_while_callers_call(pair, eventually):
    first = pair.start("--share-ports")
    eventually(first.ready, timeout_s=120)
    caller = Caller(pair.numbers[0])
    calling = threading.Thread(target=caller.run)
    calling.start()
    try:
        second = pair.start("--share-ports")
        eventually(second.ready, timeout_s=120)
        eventually(lambda: answered(second) > 0)
        before = answered(first)
        eventually(lambda: answered(first) > before)  # each gets its part
        assert first.stop() == 0
        before = answered(second)
        eventually(lambda: answered(second) > before + 20)
        assert status(pair.numbers[1]) == 1
    finally:
        caller.done.set()
        calling.join(30)
    # By the model from the first answer on: no process takes calls before it can answer them well.
    assert caller.answers.keys() == {(200, 1, None)}
    assert caller.reset <= RESET
    assert second.stop() == 0


def test_ports_are_shared_by_those_alone_that_say_so(pair, eventually):
    first = pair.start("--share-ports")
    eventually(first.ready, timeout_s=120)
    other = pair.start()
    assert other.ended() == 2
    assert f"cannot serve gRPC on 127.0.0.1:{pair.numbers[1]}" in other.errors.read_text()
    caller = Caller(pair.numbers[0])
    caller.ask()
    assert caller.answers == {(200, 1, None): 1}
