"""A model elsewhere keeps the model's contract; a server that lies, is slow or dies is noticed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from features.catalog import CATALOG
from features.declare import Array
from inference.backend import RemotePolicy
from inference.listen import GrpcOptions, Tls
from inference.model import ModelRef
from inference.samples import GOLDEN
from ingest.clock import SystemClock
from ingest.metrics import MemoryMetrics
from schemas.errors import ModelFault, Refused, Rejected
from tests.contracts.model import ModelContract, items, none, users
from tests.network_world import HASHES, MODEL, Setup, retrieve_inputs, served, tiny_model
from tests.tls_proxy import Authority

pytestmark = pytest.mark.tf

REF = ModelRef(name=MODEL, version=1, fingerprint=CATALOG.fingerprint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "1"


@pytest.fixture(scope="module")
def here(folder: Path):
    """The same version in this process."""
    return tiny_model(folder)


@pytest.fixture(scope="module")
def port(here) -> Iterator[int]:
    with served(here, Setup(grpc=GrpcOptions())) as made:
        yield made.network.grpc_port


@pytest.fixture
def metrics() -> MemoryMetrics:
    return MemoryMetrics()


@contextmanager
def remote(folder: Path, port: int, metrics: MemoryMetrics | None = None, **policy: Any):
    from inference.remote import RemoteModel

    policy = {"deadline_s": 10.0, "load_s": 10.0} | policy
    model = RemoteModel(
        folder,
        policy.pop("ref", REF),
        CATALOG,
        RemotePolicy(address=f"127.0.0.1:{port}", **policy),
        SystemClock(),
        metrics or MemoryMetrics(),
        batch_sizes=(1, 2, 4, 8),
    )
    try:
        yield model
    finally:
        model.close()


class TestRemoteModel(ModelContract):
    @pytest.fixture
    def features(self):
        return CATALOG

    @pytest.fixture
    def catalogue(self):
        return HASHES

    @pytest.fixture
    def model(self, folder, port):
        with remote(folder, port) as made:
            made.warm()
            yield made

    def test_it_answers_as_the_model_in_this_process(self, model, here):
        asked = users(CATALOG, 20)  # more than one call takes
        there, same = model.retrieve(asked, none(20), 4), here.retrieve(asked, none(20), 4)
        np.testing.assert_array_equal(there.items, same.items)
        np.testing.assert_array_equal(there.scores, same.scores)
        candidates = np.tile(HASHES[:3], (20, 1))
        shown = items(CATALOG, 60)
        np.testing.assert_array_equal(
            model.rank(asked, candidates, shown), here.rank(asked, candidates, shown)
        )

    def test_its_signatures_are_those_of_the_model(self, model, here):
        assert model.signatures == here.signatures

    def test_what_a_caller_may_not_ask_is_the_caller_s_fault(self, model):
        with pytest.raises(Rejected, match="k must be between 1 and 500"):
            model.predict("serving_default", retrieve_inputs(1, k=501), 1)
        with pytest.raises(ModelFault, match="INVALID_ARGUMENT"):
            model.retrieve(users(CATALOG, 1), none(1), 501)


def test_a_version_that_the_server_does_not_have_is_refused(folder, port):
    refused = pytest.raises(Refused, match="version 7, GetModelMetadata at 127")
    with refused, remote(folder, port, ref=replace(REF, version=7)):
        pass


def test_a_version_of_another_feature_set_is_refused(folder, port):
    refused = pytest.raises(Refused, match="was trained on feature set ffff")
    with refused, remote(folder, port, ref=replace(REF, fingerprint="ffff")):
        pass


def test_a_server_of_other_bytes_is_refused(port, tmp_path):
    """The folder's golden calls are those of a catalogue in another order."""
    from tests.tiny_model import export

    export(tmp_path / "1", CATALOG, HASHES[::-1].copy())
    refused = pytest.raises(Refused, match="golden call 0")
    with remote(tmp_path / "1", port) as model, refused:
        model.warm()


def test_missing_golden_calls_are_refused(port, tmp_path):
    from tests.tiny_model import export

    export(tmp_path / "1", CATALOG, HASHES)
    (tmp_path / "1" / GOLDEN).unlink()
    with remote(tmp_path / "1", port) as model, pytest.raises(Refused, match=GOLDEN):
        model.warm()


def test_a_server_that_cannot_be_reached_is_tried_again_and_then_a_model_fault(folder, metrics):
    faulty = pytest.raises(ModelFault, match="UNAVAILABLE")
    with faulty, remote(folder, free_port(), metrics, attempts=4, back_off_s=0.001):
        pass
    assert metrics.value("serve.remote_retries") == 3
    assert metrics.value("serve.remote_calls", status="UNAVAILABLE") == 4


def test_a_server_that_does_not_answer_is_a_model_fault_at_the_deadline(folder, metrics):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        faulty = pytest.raises(ModelFault, match=r"DEADLINE_EXCEEDED|UNAVAILABLE")
        with faulty, remote(folder, silent.getsockname()[1], metrics, load_s=0.3):
            pass


def test_a_server_that_dies_is_a_model_fault_until_it_is_back(folder, here, metrics):
    port = free_port()
    at = Setup(grpc=GrpcOptions(port=port, stop_s=0.1))
    asked = users(CATALOG, 2)
    with served(here, at):
        opened = remote(folder, port, metrics)
        model = opened.__enter__()
        model.warm()
        before = model.retrieve(asked, none(2), 3)
    for _ in range(3):
        with pytest.raises(ModelFault, match="UNAVAILABLE"):
            model.retrieve(asked, none(2), 3)
    assert metrics.value("serve.remote_retries") > 0
    with served(here, at):
        after = until(lambda: model.retrieve(asked, none(2), 3))
    opened.__exit__(None, None, None)
    np.testing.assert_array_equal(after.items, before.items)


def test_a_server_that_comes_back_with_other_bytes_is_not_believed(folder, here, tmp_path):
    port = free_port()
    at = Setup(grpc=GrpcOptions(port=port, stop_s=0.1))
    asked = users(CATALOG, 1)
    with served(here, at):
        opened = remote(folder, port)
        model = opened.__enter__()
        model.warm()
    with pytest.raises(ModelFault, match="UNAVAILABLE"):
        model.retrieve(asked, none(1), 3)
    with served(backwards(tmp_path / "1"), at):
        told = until_told(lambda: model.retrieve(asked, none(1), 3), "came back as another")
        assert "golden call 0" in told
    with served(here, at):
        until(lambda: model.retrieve(asked, none(1), 3))
    opened.__exit__(None, None, None)


def test_a_connection_is_encrypted_where_roots_are_given(folder, here, tmp_path):
    authority = Authority(tmp_path, "ours")
    other = Authority(tmp_path, "theirs")
    own = authority.issue("server")
    tls = Tls(cert_file=own.certificate, key_file=own.key)
    with served(here, Setup(grpc=GrpcOptions(tls=tls))) as made:
        port = made.network.grpc_port
        with remote(folder, port, tls_roots=authority.file) as model:
            model.warm()
            assert model.retrieve(users(CATALOG, 1), none(1), 3).items.all()
        for roots in (None, other.file):
            faulty = pytest.raises(ModelFault, match="UNAVAILABLE")
            with faulty, remote(folder, port, tls_roots=roots):
                pass


# --- servers that do not keep their side


Change = Callable[[dict[str, Array]], dict[str, Array]]


@dataclass
class Liar(prediction_service_pb2_grpc.PredictionServiceServicer):
    """A TensorFlow Serving that gives the outputs of a model as `change` makes them."""

    model: Any
    change: Change = dict
    told: Callable[[Any], None] = lambda told: None  # changes the signatures

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's
        from inference.protos import arrays, tensor

        inputs = arrays(request.inputs, 1_000_000)
        rows = max(
            len(array) for name, array in inputs.items() if name in ("exclude", "candidates")
        )
        found = self.model.predict(request.model_spec.signature_name, inputs, rows)
        outputs = {name: tensor(array) for name, array in self.change(found).items()}
        return predict_pb2.PredictResponse(outputs=outputs)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's
        from inference.protos import SIGNATURE_DEF, signature_map

        signatures = signature_map(self.model.signatures)
        self.told(signatures)
        reply = get_model_metadata_pb2.GetModelMetadataResponse()
        reply.metadata[SIGNATURE_DEF].Pack(signatures)
        return reply


@contextmanager
def lying(liar: Liar) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(liar, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda o: o | {"scores": o["scores"] * np.float32(np.nan)}, "NaN among the scores"),
        (lambda o: o | {"scores": o["scores"][:, :2]}, r"scores is float32 of shape \(2, 2\)"),
        (lambda o: o | {"items": o["scores"]}, "items is float32 .* not int64"),
        (lambda o: {"items": o["items"]}, "scores is absent"),
        (lambda o: o | {"scores": o["scores"].astype(np.float64)}, "output 'scores' is float64"),
    ],
)
def test_an_answer_that_cannot_be_used_is_a_model_fault(folder, here, change, told):
    faulty = pytest.raises(ModelFault, match=told)
    with lying(Liar(here, change)) as port, remote(folder, port) as model, faulty:
        model.retrieve(users(CATALOG, 2), none(2), 3)


def test_rows_are_counted_where_tensors_are_called(folder, here):
    shorter = Liar(here, lambda o: {n: a[:1] for n, a in o.items()})
    faulty = pytest.raises(ModelFault, match="for 2 rows")
    with lying(shorter) as port, remote(folder, port) as model, faulty:
        model.predict("serving_default", retrieve_inputs(2), 2)


def test_signatures_that_do_not_fit_are_explained(folder, here):
    name = CATALOG.features[0].name

    def without(told: Any) -> None:
        del told.signature_def["serving_default"].inputs[name]

    with lying(Liar(here, told=without)) as port:
        refused = pytest.raises(Refused, match=f"serving_default: input {name!r} is missing")
        with refused, remote(folder, port):
            pass


def test_the_initialiser_that_tensorflow_serving_lists_is_no_signature(folder, here):
    def with_initialiser(told: Any) -> None:
        told.signature_def["__saved_model_init_op"].outputs["op"].name = "NoOp"

    with lying(Liar(here, told=with_initialiser)) as port, remote(folder, port) as model:
        assert set(model.signatures) == {"serving_default", "rank", "measure"}


def backwards(folder: Path):
    """The same items in another order, as version 1."""
    from inference.savedmodel import SavedModel
    from tests.tiny_model import export

    export(folder, CATALOG, HASHES[::-1].copy())
    return SavedModel(folder, REF, CATALOG)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def until(call: Callable[[], Any]) -> Any:
    """What the call gives once it does."""
    clock = SystemClock()
    for _ in range(200):
        try:
            return call()
        except ModelFault:
            clock.sleep(0.05)
    return call()


def until_told(call: Callable[[], Any], text: str) -> str:
    """The fault that says so."""
    clock = SystemClock()
    for _ in range(200):
        with pytest.raises(ModelFault) as told:
            call()
        if text in str(told.value):
            return str(told.value)
        clock.sleep(0.05)
    raise AssertionError(f"never told: {text}")
