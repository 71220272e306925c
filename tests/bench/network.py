"""
The network API at a burst: REST and gRPC beside the Kafka path, and beside servers that others made
and that serve the same SavedModel.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy import ports
from deploy.supervise import Service
from features.assemble import named
from features.catalog import CATALOG
from features.declare import Array, Level
from inference.server import Options
from ingest.settings import Settings
from schemas.errors import ProcessFailed
from tests.bench.environment import installed
from tests.bench.figures import Figure, figure
from tests.bench.load import BadAnswer, Load, over_grpc, over_http, post
from tests.bench.measure import TooSlow, quantiles_ms
from tests.bench.peers.saved import FOLDER, MAX_BATCH, WAIT_MS
from tests.bench.serve_log import SPOKEN
from tests.bench.serving import ACTIVE, BATCHES, QUIET, Client, K, features, ready
from tests.bench.shop import COUNTRIES, DEVICES, SURFACES
from tests.bench.world import ROOT, World

LOCK = Path(__file__).with_name("serving-requirements.lock")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
# Calls under way: as many as the largest batch holds, ours of the Kafka path and that of the peers.
BURST, CONNECTIONS = Options().max_batch, MAX_BATCH
AIM = 0.7  # of the Kafka path's requests/s
SHARE = 4  # of all requests, one in so many carries tensors: a call takes longer
OF_KAFKA = 4  # one call for so many requests of the Kafka path: it takes longer
PASSES = 3
SAMPLE = BATCHES[-1]  # answers that are compared: one of each row
PAIR = "two processes on one port"
READY_S = 90.0
# Scores are float32 sums, whose order differs with the batch; near ties may change places.
TOLERANCE, SAME = 1e-3, 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server by others."""

    name: str
    module: str
    path: str  # of its calls
    health: str
    waits_ms: tuple[float, ...]  # for a batch to fill, of which the best counts
    command: tuple[str, ...]  # after the interpreter; the port follows


PEERS = (
    Peer(
        name="LitServe",
        module="litserve_server",
        path="/predict",
        health="/health",
        waits_ms=(1, 5, 10),
        command=("-m", "tests.bench.peers.litserve_server"),
    ),
    Peer(
        name="BentoML",
        module="bentoml_server",
        path="/predict",
        health="/readyz",
        # Not a wait but how long a call may take: its batches adapt to it.
        waits_ms=(1_000, 10_000),
        command=(
            *("-m", "bentoml", "serve", "tests.bench.peers.bentoml_server:Recommender"),
            *("--working-dir", str(ROOT), "--host", "127.0.0.1", "--port"),
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The same rows for everybody, encoded beforehand."""

    recommend: Sequence[bytes]
    rows: Sequence[bytes]  # bodies of `:predict`, one row each
    messages: Sequence[bytes]  # of gRPC's Predict, one row each


def run(world: World) -> Iterator[Figure]:
    """The Kafka path, REST and gRPC of one process, REST of two; then each peer by itself."""
    settings, _ = ready(world)
    calls = _calls(world, settings)
    with ports.reserve(2) as reserved:
        http_port, grpc_port = reserved.numbers
    listening = ("--http-port", str(http_port), "--grpc-port", str(grpc_port), "--share-ports")
    with world.command(settings, "serve", *listening, environment=SPOKEN):
        kafka_per_s = _kafka(world, settings)
        limit = {"the Kafka path": kafka_per_s}
        yield figure(
            "network: the Kafka path at a burst, same process",
            kafka_per_s,
            "requests/s",
            requests=world.sizes.serve_requests,
        )
        path = f"/v1/models/{settings.model_name}:predict"
        posts = [post(path, body) for body in calls.rows]
        recommended = _best(lambda: over_http(http_port, calls.recommend, BURST))
        _check_recommended(recommended)
        yield _beside_kafka("network: REST, /v1/recommend", recommended, limit)
        rest = _best(lambda: over_http(http_port, posts, CONNECTIONS))
        note = f"features as {len(calls.rows[0]):,} bytes of JSON a call, one user each"
        yield _beside_kafka("network: REST, :predict with all features", rest, limit, note)
        grpc = _best(lambda: over_grpc(grpc_port, PREDICT, calls.messages, CONNECTIONS))
        note = (
            "Predict takes tensors alone, here a user's features by name, "
            f"{len(calls.messages[0]):,} bytes; rows are not read by the server"
        )
        yield _beside_kafka("network: gRPC, Predict with all features", grpc, limit, note)
        with world.command(settings, "serve", "--instance", "1", *listening, environment=SPOKEN):
            note = "beside the Kafka path of one process"
            pair = _best(lambda: over_http(http_port, calls.recommend, BURST))
            _check_recommended(pair)
            yield _beside_kafka(f"network: REST, /v1/recommend, {PAIR}", pair, limit, note)
            pair = _best(lambda: over_http(http_port, posts, CONNECTIONS))
            yield _beside_kafka(f"network: REST, :predict, {PAIR}", pair, limit, note)
    folder = _version(settings)
    expected = [json.loads(one)["predictions"][0] for one in rest.answers[:SAMPLE]]
    interpreter = installed(LOCK, world.directory.parent / "serving-venv")
    for peer in PEERS:
        try:
            yield _beside_us(world, peer, (interpreter, folder), calls.rows, (rest, expected))
        except (BadAnswer, ProcessFailed, TooSlow, OSError) as error:
            yield Figure(
                name=f"network: {peer.name}, same model and calls",
                value=None,
                unit="requests/s",
                detail={"error": f"{error!s:.600}"},
            )


def _kafka(world: World, settings: Settings) -> float:
    """Requests/s at a burst, the best of some."""
    client = Client(world, settings)
    client.warm()
    count = world.sizes.serve_requests
    taken_s = [client.burst(count) for _ in range(PASSES)]
    client.close()
    return count / min(taken_s)


def _best(load: Callable[[], Load]) -> Load:
    """The fastest pass; one before it warms."""
    load()
    return min((load() for _ in range(PASSES)), key=lambda one: one.taken_s)


def _beside_kafka(name: str, load: Load, limit: Mapping[str, float], note: str = "") -> Figure:
    (kafka_per_s,) = limit.values()
    return figure(
        name,
        load.per_s,
        "requests/s",
        aim=AIM * kafka_per_s,
        limits=limit,
        **_told(load),
        **({"note": note} if note else {}),
    )


def _told(load: Load) -> dict[str, Any]:
    return {
        "calls_under_way": load.under_way,
        "quantiles": quantiles_ms(load.latencies_s),
        "load_cpu_us_per_call": round(1e6 * load.cpu_s / len(load.latencies_s), 1),
    }


def _check_recommended(load: Load) -> None:
    for answer in map(json.loads, load.answers[:SAMPLE]):
        if len(answer["items"]) != K or answer["fallback_reason"]:
            raise BadAnswer(f"{str(answer)[:300]}")


# --- what is sent


def _calls(world: World, settings: Settings) -> Calls:
    """Users in turn; the rows are those of the most active ones."""
    count = world.sizes.serve_requests // OF_KAFKA
    people = np.random.default_rng(4).integers(0, min(ACTIVE, world.shop.users), count).tolist()
    recommend = [
        {
            "user_id": world.shop.user(person),
            "k": K,
            "surface": SURFACES[person % 3],
            "device": DEVICES[person % 3],
            "country": COUNTRIES[person % 4],
        }
        for person in people
    ]
    users, seen = features(world, settings)
    inputs = named(CATALOG, Level.USER, users.longs, users.floats)
    inputs |= {"exclude": seen.view(np.int64)}
    rows = [{name: array[at : at + 1] for name, array in inputs.items()} for at in range(SAMPLE)]
    times = max(1, count // SHARE // SAMPLE)
    return Calls(
        recommend=[post("/v1/recommend", json.dumps(body).encode()) for body in recommend],
        rows=[_instance(row) for row in rows] * times,
        messages=[_message(settings.model_name, row) for row in rows] * times,
    )


def _instance(row: Mapping[str, Array]) -> bytes:
    plain = {name: array[0].tolist() for name, array in row.items()}
    return json.dumps({"instances": [{**plain, "k": K}]}).encode()


def _message(model: str, row: Mapping[str, Array]) -> bytes:
    from tensorflow_serving.apis import predict_pb2

    from inference.protos import tensor

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, array in {**row, "k": np.array(K, np.int32)}.items():
        request.inputs[name].CopyFrom(tensor(array))
    return bytes(request.SerializeToString())


# --- the peers


def _version(settings: Settings) -> Path:
    """The folder of the released version, as it is served."""
    found = sorted(Path(settings.models_dir).rglob("saved_model.pb"))
    return found[-1].parent


def _beside_us(
    world: World,
    peer: Peer,
    where: tuple[Path | str, Path],
    rows: Sequence[bytes],
    ours: tuple[Load, Sequence[Mapping[str, Any]]],
) -> Figure:
    """The peer at its best setting, its answers held against ours."""
    interpreter, folder = where
    if isinstance(interpreter, str):
        raise ProcessFailed(interpreter)
    rest, expected = ours
    calls = [post(peer.path, body) for body in rows]
    tried: dict[float, Load] = {}
    for wait_ms in peer.waits_ms:
        with _serving(world, peer, interpreter, {FOLDER: str(folder), WAIT_MS: str(wait_ms)}) as at:
            tried[wait_ms] = _best(lambda at=at: over_http(at, calls, CONNECTIONS))  # type: ignore[misc]
    best_ms, best = min(tried.items(), key=lambda pair: pair[1].taken_s)
    if wrong := unlike(expected, best.answers):
        raise BadAnswer(wrong)
    return figure(
        f"network: REST beside {peer.name}, same model and calls",
        rest.per_s,
        "requests/s",
        peer=(peer.name, best.per_s),
        answers=f"equal to ours for {len(expected)} users",
        max_batch=MAX_BATCH,
        wait_ms=best_ms,
        per_s_by_wait_ms={f"{ms:g}": round(one.per_s) for ms, one in tried.items()},
        of_the_peer=_told(best),
    )


@contextmanager
def _serving(
    world: World, peer: Peer, interpreter: Path, environment: dict[str, str]
) -> Iterator[int]:
    """The peer as a process of its own, ready, its port."""
    with ports.reserve(1) as reserved:
        (port,) = reserved.numbers
    home = world.directory / "bentoml"
    home.mkdir(exist_ok=True)
    quiet = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true", "PYTHONPATH": str(ROOT)}
    world.supervisor.start(
        Service(
            name=peer.module,
            command=(str(interpreter), *peer.command, str(port)),
            log=world.directory / f"{peer.module}.log",
            answers=lambda: _healthy(port, peer.health),
            environment={**dict([QUIET]), **quiet, **environment},
            directory=ROOT,
            ready_timeout_s=READY_S,
        )
    )
    try:
        yield port
    finally:
        world.supervisor.stop(peer.module)


def _healthy(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def unlike(expected: Sequence[Mapping[str, Any]], answers: Sequence[bytes]) -> str:
    """Why a peer's answers are not ours; empty: they are."""
    found = []
    for answer in answers[: len(expected)]:
        given = json.loads(answer)
        found += given["predictions"] if isinstance(given, dict) else given
    ours, theirs = ([one["scores"] for one in rows] for rows in (expected, found))
    if np.shape(ours) != np.shape(theirs):
        return f"scores of shape {np.shape(theirs)}, ours {np.shape(ours)}"
    if not np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
        gap = np.abs(np.subtract(ours, theirs)).max()
        return f"scores differ from ours by up to {gap:.3g}"
    same = np.equal([one["items"] for one in expected], [one["items"] for one in found]).mean()
    return "" if same >= SAME else f"only {same:.1%} of the items are ours"
