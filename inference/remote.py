"""
A trained version as a TensorFlow Serving elsewhere runs it: PredictionService over gRPC.

The server is pointed at the same models folder (`--model_base_path=<models>/<name>`), whose layout
is its own; a version has the same number here and there. What it answers is held against the golden
calls of the folder whose signature was verified here: a server with other bytes is refused.

Tested against `inference.grpc`, which speaks the same messages; there is no TensorFlow Serving
among the tests' programs. Importing this imports TensorFlow, whose messages these are; import late.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from features.declare import Array, FeatureSet
from inference.backend import RemotePolicy
from inference.calls import BATCH_SIZES, CalledModel, CallStyle, name_of
from inference.expected import with_leads
from inference.model import ModelRef
from inference.protos import SIGNATURE_DEF, arrays, model_spec, signatures_in, tensor
from inference.tensors import Signature
from ingest.clock import Clock
from ingest.metrics import Metrics
from schemas.errors import ModelFault, Reason, Refused, Rejected

log = structlog.get_logger(__name__)

# What of a call may be found in a log: the rest of a long text is of no use.
_MOST: Final = 500


class RemoteModel(CalledModel):
    """
    A version that a TensorFlow Serving serves. Calls may come from several threads.

    While the server cannot be reached, calls are a ModelFault after the policy's attempts. Once it
    is back, the golden calls are replayed before anything else is answered: what comes back need
    not be what went away. A server that is exchanged between two calls is not noticed.
    """

    def __init__(
        self,
        folder: Path,
        ref: ModelRef,
        features: FeatureSet,
        policy: RemotePolicy,
        clock: Clock,
        metrics: Metrics,
        *,
        batch_sizes: tuple[int, ...] = BATCH_SIZES,
    ) -> None:
        """
        Args:
            folder: of the verified version, with its sampled calls.
            batch_sizes: the largest is the most rows of one call; nothing is padded.

        Raises:
            Refused: the server does not serve this version, or it does not fit its feature set.
            ModelFault: the server cannot be reached, or fails.
        """
        # As many rows as asked for: zeros would travel, and the server has its own batching.
        sizes = (1, max(batch_sizes))
        style = CallStyle(batch_sizes=sizes, padded=False, warm_calls=1)
        super().__init__(folder, ref, features, style)
        self._policy, self._clock, self._metrics = policy, clock, metrics
        self._chance = random.Random()  # noqa: S311 - spreads retries
        self._checking = threading.Lock()
        self._doubted = False  # whether the server was away since it was last checked
        self._deadline_s = policy.load_s
        self._channel: grpc.Channel | None = _channel(policy)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        try:
            self._accept(self._asked())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._doubted:
            self._check_again()
        outputs = self._predicted(signature, inputs)
        if self._doubted:  # it went away and came back within this call
            self._check_again()
        return outputs

    def _warmed(self) -> None:
        self._deadline_s = self._policy.deadline_s

    def _predicted(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        request = predict_pb2.PredictRequest(
            model_spec=model_spec(self._ref.name, self._ref.version, signature),
            inputs={name: tensor(array) for name, array in inputs.items()},
        )
        reply = self._called(signature, lambda: self._stub.Predict, request)
        try:
            return arrays(reply.outputs, self._policy.max_values, of="output")
        except Rejected as rejected:
            raise ModelFault(f"{self._at(signature)}: {rejected.detail}") from rejected

    def _check_again(self) -> None:
        """
        Replay the golden calls of a server that was away. One thread does, the others wait for it.
        """
        if not self._checking.acquire(timeout=self._policy.deadline_s):
            raise ModelFault(f"{name_of(self._ref)}: {self._policy.address} is being checked")
        try:
            if self._doubted:
                self.compare_golden(self._predicted)
                self._doubted = False
                log.info("remote.back", address=self._policy.address, version=self._ref.version)
        except Refused as refused:
            raise ModelFault(f"{self._policy.address} came back as another: {refused}") from refused
        finally:
            self._checking.release()

    def _asked(self) -> dict[str, Signature]:
        """The server's signatures."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=model_spec(self._ref.name, self._ref.version, ""),
            metadata_field=[SIGNATURE_DEF],
        )
        method = "GetModelMetadata"
        told = get_model_metadata_pb2.SignatureDefMap()
        try:
            reply = self._called(method, lambda: self._stub.GetModelMetadata, request)
            is_told = reply.metadata[SIGNATURE_DEF].Unpack(told)
            found = signatures_in(told)
        except (Rejected, ValueError) as error:
            raise Refused(f"{self._at(method)}: {error}") from error
        if not is_told:
            raise Refused(f"{self._at(method)}: no signatures are told")
        return {
            name: Signature(inputs=with_leads(one.inputs, self._features), outputs=one.outputs)
            for name, one in found.items()
        }

    def _called(self, what: str, method: Callable[[], Any], request: Any) -> Any:
        """The reply, within the deadline; again while the server is not there."""
        until_s = self._clock.monotonic_s() + self._deadline_s
        attempt = 1
        while True:
            left_s = until_s - self._clock.monotonic_s()
            try:
                if self._channel is None:
                    raise ModelFault(f"{name_of(self._ref)}, {what}: it is closed")
                reply = method()(request, timeout=left_s)
            except grpc.RpcError as error:
                pause_s = self._policy.pause_s(attempt, self._chance.random())
                left_s = until_s - self._clock.monotonic_s()
                gone = self._failed(error)
                if not gone or attempt == self._policy.attempts or pause_s >= left_s:
                    raise self._fault(what, error) from error
            except ValueError as error:  # what grpc says of a channel that was closed meanwhile
                raise ModelFault(f"{self._at(what)}: {error}") from error
            else:
                self._metrics.count("serve.remote_calls", status="OK")
                return reply
            attempt += 1
            self._metrics.count("serve.remote_retries")
            self._clock.sleep(pause_s)

    def _failed(self, error: Any) -> bool:
        """Note a try that failed; whether the server was not there."""
        self._metrics.count("serve.remote_calls", status=error.code().name)
        gone = error.code() is grpc.StatusCode.UNAVAILABLE
        self._doubted = self._doubted or gone
        return bool(gone)

    def _fault(self, what: str, error: Any) -> Exception:
        """As this project calls it."""
        code, detail = error.code(), str(error.details() or "")[:_MOST]
        text = f"{self._at(what)}: {code.name}: {detail}"
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return Rejected(Reason.OUT_OF_RANGE, text)
        if code is grpc.StatusCode.NOT_FOUND and not self._signatures:
            return Refused(text)
        return ModelFault(text)

    def _at(self, what: str) -> str:
        return f"{name_of(self._ref)}, {what} at {self._policy.address}"


def _channel(policy: RemotePolicy) -> grpc.Channel:
    options = [
        ("grpc.max_receive_message_length", policy.max_message_bytes),
        ("grpc.enable_retries", 0),  # ours are counted
        # A server that comes back is found within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A peer that does not answer a ping is gone: calls under way end.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Models have channels of their own: what one learns of a server is not another's.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if policy.tls_roots is None:
        return grpc.insecure_channel(policy.address, options)
    secrets = grpc.ssl_channel_credentials(policy.tls_roots.read_bytes())
    return grpc.secure_channel(policy.address, secrets, options)
