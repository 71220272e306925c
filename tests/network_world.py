"""The network API on a small world: a real SavedModel, a log in memory, real sockets."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from features.catalog import CATALOG
from features.declare import Level
from features.hashing import hash_ids
from inference.admission import Admission
from inference.api import Api, ApiParts, ApiPolicy
from inference.auth import TokenRules, Tokens
from inference.encoding import AnswerWriter
from inference.listen import GrpcOptions, HttpOptions
from inference.model import Model, ModelRef
from inference.network import Network, NetworkOptions, NetworkParts
from inference.publisher import EventPublisher
from inference.quota import Quotas
from inference.recorder import AnswerRecorder
from inference.release import Why, first
from inference.rest import RestPolicy
from inference.titles import Titles
from inference.trail import Trail
from ingest.log import TopicPartition
from ingest.memory import MemoryLog, MemoryProducer
from ingest.tracing import NO_TRACER, Tracer
from schemas.codec import Codec
from schemas.events import Item, Recommendation, UserEvent
from schemas.registry import MemoryRegistry
from tests.serving import ITEMS, PARTITIONS, World

MODEL = "m"
HASHES = hash_ids(ITEMS)


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running network API."""

    world: World
    log: MemoryLog
    api: Api
    network: Network
    registry: MemoryRegistry
    tls: ssl.SSLContext | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        """One call. `body` that is not bytes is sent as JSON; a header that is None is left out."""
        with self.connection() as connection:
            return self.over(connection, method, path, body, **headers)

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection for several calls."""
        if self.tls:
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.network.http_port, timeout=20, context=self.tls
            )
        else:
            made = http.client.HTTPConnection("127.0.0.1", self.network.http_port, timeout=20)
        try:
            yield made
        finally:
            made.close()

    def over(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        **headers: str | None,
    ) -> Answer:
        """One call on this connection."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json" if data is not None else None}
        given |= {**self.headers, **{n.replace("_", "-"): v for n, v in headers.items()}}
        connection.request(method, path, data, {n: v for n, v in given.items() if v is not None})
        found = connection.getresponse()
        return Answer(found.status, dict(found.getheaders()), found.read())

    def post(self, path: str, body: Any, **headers: str | None) -> Answer:
        """POST as JSON."""
        return self.call("POST", path, body, **headers)

    def refused(self, reason: str) -> float:
        """How many calls over HTTP were refused for this reason."""
        return self.world.metrics.value("network.refused", protocol="http", reason=reason)

    def values(self, topic: str) -> list[bytes]:
        """What is on a topic."""
        return [
            value
            for partition in range(PARTITIONS)
            if (batch := self.log.read(TopicPartition(topic, partition), 0, 1000))
            for value in batch.values
        ]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the API is set up."""

    policy: ApiPolicy = field(default_factory=ApiPolicy)
    rest: RestPolicy = field(default_factory=RestPolicy)
    http: HttpOptions = field(default_factory=HttpOptions)
    grpc: GrpcOptions | None = None
    rules: TokenRules | None = None
    quotas: Quotas | None = None
    max_waiting_bytes: int = 64 << 20
    tracer: Tracer = NO_TRACER
    started: threading.Event = field(default_factory=threading.Event)
    ended: Callable[[], None] = lambda: None


@contextmanager
def served(model: Model | None, setup: Setup | None = None) -> Iterator[Served]:
    """The API on real ports; `model` is version 1 and stable."""
    setup = setup or Setup()
    world, log, registry = World(), MemoryLog(), MemoryRegistry()
    if model is not None:
        world.deploy(first(MODEL, 1, Why(at_ms=0, reason="test")), model)
    for topic in ("user-events", "recommendations"):
        log.create_topic(topic, PARTITIONS)
    producer = MemoryProducer(log)
    publisher = EventPublisher(
        producer,
        Codec(registry, UserEvent, "user-events"),
        world.clock,
        future_ms=CATALOG.row.future_ms,
        timeout_s=5,
    )
    answers = AnswerWriter(Codec(registry, Recommendation, "recommendations"))
    recorder = AnswerRecorder(answers, producer, world.metrics, timeout_s=5)
    parts = ApiParts(
        model_name=MODEL,
        steps=world.service,
        live=world.live,
        publisher=publisher,
        recorder=recorder,
        started=setup.started,
        trail=Trail(world.clock, world.metrics, setup.tracer),
    )
    api = Api(parts, world.clock, world.metrics, setup.policy)
    titles = Titles()
    titles.put([Item(item_id=i, title=i.upper()) for i in ITEMS])
    tokens = Tokens(setup.rules, world.clock) if setup.rules else None
    admission = Admission(
        tokens,
        setup.quotas,
        world.clock,
        world.metrics,
        setup.max_waiting_bytes,
        tracer=setup.tracer,
    )
    network = Network(
        NetworkParts(api=api, admission=admission, titles=titles, model_name=MODEL),
        NetworkOptions(http=setup.http, rest=setup.rest, grpc=setup.grpc),
        world.clock,
        ended=setup.ended,
    )
    try:
        yield Served(world=world, log=log, api=api, network=network, registry=registry)
    finally:
        network.close()
        api.close()
        publisher.close()
        recorder.close()


def tiny_model(folder: Path) -> Model:
    """A real SavedModel of the items of `tests.serving`."""
    from inference.savedmodel import SavedModel
    from tests.tiny_model import export

    export(folder, CATALOG, HASHES)
    ref = ModelRef(name=MODEL, version=1, fingerprint=CATALOG.fingerprint)
    model = SavedModel(folder, ref, CATALOG, batch_sizes=(1, 2, 4, 8, 16, 32))
    model.warm((1, 2))
    return model


def retrieve_inputs(rows: int = 2, k: int = 3, exclude: int = 1) -> dict[str, np.ndarray]:
    """Inputs of `serving_default`, all zeros."""
    users = _zeros(Level.USER, rows)
    left_out = np.zeros((rows, exclude), np.int64)
    return users | {"exclude": left_out, "k": np.array(k, np.int32)}


def rank_inputs(rows: int = 2, wide: int = 3) -> dict[str, np.ndarray]:
    """Inputs of `rank`: every row ranks the first items."""
    candidates = np.tile(HASHES[:wide].view(np.int64), (rows, 1))
    pairs = _zeros(Level.ITEM, rows * wide)
    return _zeros(Level.USER, rows) | pairs | {"candidates": candidates}


def _zeros(level: Level, n: int) -> dict[str, np.ndarray]:
    return {
        f.name: np.zeros((n,) if f.length == 1 else (n, f.length), f.dtype)
        for f in CATALOG.of(level)
    }


def plain(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """As JSON has them."""
    return {name: array.tolist() for name, array in inputs.items()}
