"""What of this process can be reached over the network, by whom, and how it is put together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from features.catalog import CATALOG
from inference.admission import Admission
from inference.api import Api, ApiParts, ApiPolicy
from inference.auth import TokenRules, Tokens
from inference.consumer import Steps
from inference.encoding import AnswerWriter
from inference.listen import GrpcOptions, HttpOptions, Tls
from inference.live import Live
from inference.network import Network, NetworkOptions, NetworkParts
from inference.publisher import EventPublisher
from inference.quota import Quotas, parsed
from inference.recorder import AnswerRecorder
from inference.rest import RestPolicy
from inference.titles import Titles
from inference.trail import Trail
from ingest.clock import Clock
from ingest.kafka import KafkaProducer
from ingest.metrics import Metrics
from ingest.settings import Settings
from ingest.topics import Topics
from ingest.tracing import NO_TRACER, Tracer
from schemas.codec import Codec
from schemas.errors import Misconfigured
from schemas.events import Recommendation, UserEvent
from schemas.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """As a person sets it; checked as a whole."""

    http_port: int | None = None  # None: no HTTP; 0: a free port
    grpc_port: int | None = None
    host: str = "127.0.0.1"
    share_ports: bool = False  # with other processes of this machine
    tls_cert: Path | None = None
    tls_key: Path | None = None
    secret_file: Path | None = None
    jwks_file: Path | None = None
    audience: str = "millstream"
    issuer: str | None = None
    anonymous: bool = False  # whoever reaches the port may do everything
    quota: str | None = None
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        """
        Raises:
            Misconfigured: every problem, in one message.
        """
        problems = []
        if (self.tls_cert is None) != (self.tls_key is None):
            problems.append("--tls-cert and --tls-key go together")
        if self.anonymous and self.has_keys:
            problems.append("--anonymous lets everybody in: it does not go with keys")
        if not (self.anonymous or self.has_keys or _is_local(self.host)):
            problems.append(
                f"--host {self.host} can be reached from elsewhere: give --token-secret or "
                "--token-jwks, or --anonymous to let everybody in"
            )
        if self.share_ports and not (self.wanted and self.http_port != 0 and self.grpc_port != 0):
            problems.append(
                "--share-ports needs to know them: give --http-port or --grpc-port a number, not 0"
            )
        if problems:
            raise Misconfigured("; ".join(problems))

    @property
    def wanted(self) -> bool:
        """Whether there is anything to serve."""
        return self.http_port is not None or self.grpc_port is not None

    @property
    def has_keys(self) -> bool:
        """Whether callers must show a token."""
        return self.secret_file is not None or self.jwks_file is not None

    def tokens(self, clock: Clock) -> Tokens | None:
        """
        What checks tokens; None: nobody needs one.

        Raises:
            Misconfigured: a key file is not usable.
        """
        if not self.has_keys:
            return None
        rules = TokenRules(
            audience=self.audience,
            issuer=self.issuer,
            secret_file=self.secret_file,
            jwks_file=self.jwks_file,
        )
        return Tokens(rules, clock)

    def network(self) -> NetworkOptions:
        """Where to listen, and within which bounds."""
        tls = None
        if self.tls_cert is not None and self.tls_key is not None:
            tls = Tls(cert_file=self.tls_cert, key_file=self.tls_key)
        http = grpc = None
        if self.http_port is not None:
            http = HttpOptions(
                host=self.host, port=self.http_port, shared=self.share_ports, tls=tls
            )
        if self.grpc_port is not None:
            grpc = GrpcOptions(
                host=self.host,
                port=self.grpc_port,
                shared=self.share_ports,
                tls=tls,
                max_message_bytes=self.max_body_bytes,
            )
        rest = RestPolicy(max_body_bytes=self.max_body_bytes, origins=self.origins)
        return NetworkOptions(http=http, rest=rest, grpc=grpc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """What of a serving process is exposed."""

    settings: Settings
    registry: Registry
    steps: Steps
    live: Live
    titles: Titles
    started: threading.Event
    clock: Clock
    metrics: Metrics
    tracer: Tracer = NO_TRACER
    trail: Trail | None = None  # of answers given over the network


def expose(
    what: Exposed, exposure: Exposure, stack: ExitStack, ended: Callable[[], None]
) -> Network:
    """
    The network API, served until the stack unwinds. `ended`: called if it ends by itself.

    Raises:
        Misconfigured: a port is taken, or a certificate or key is not usable.
    """
    settings, clock, metrics = what.settings, what.clock, what.metrics
    tokens = exposure.tokens(clock)
    quotas = None
    if exposure.quota is not None:
        prefix = settings.topic_prefix
        quotas = Quotas(parsed(exposure.quota), settings.redis_url, clock, prefix=prefix)
    api = _api(what, stack)
    stack.callback(api.close)
    parts = NetworkParts(
        api=api,
        admission=Admission(tokens, quotas, clock, metrics, tracer=what.tracer),
        titles=what.titles,
        model_name=settings.model_name,
    )
    network = Network(parts, exposure.network(), clock, ended)
    stack.callback(network.close)
    return network


def _api(what: Exposed, stack: ExitStack) -> Api:
    settings, clock, metrics = what.settings, what.clock, what.metrics
    topics = Topics(settings.topic_prefix)
    events, answers = _producer(settings, stack), _producer(settings, stack)
    publisher = EventPublisher(
        events,
        Codec(what.registry, UserEvent, topics.user_events),
        clock,
        future_ms=CATALOG.row.future_ms,
        timeout_s=settings.timeout_s,
    )
    stack.callback(publisher.close)
    recorder = AnswerRecorder(
        AnswerWriter(
            Codec(what.registry, Recommendation, topics.recommendations),
            max_answer_bytes=int(settings.max_record_bytes * 0.9),
        ),
        answers,
        metrics,
        timeout_s=settings.timeout_s,
    )
    stack.callback(recorder.close)
    parts = ApiParts(
        model_name=settings.model_name,
        steps=what.steps,
        live=what.live,
        publisher=publisher,
        recorder=recorder,
        started=what.started,
        trail=what.trail,
    )
    return Api(parts, clock, metrics, ApiPolicy())


def _producer(settings: Settings, stack: ExitStack) -> KafkaProducer:
    producer = KafkaProducer(
        settings.bootstrap_servers,
        timeout_s=settings.timeout_s,
        send_timeout_s=settings.timeout_s,
        max_record_bytes=settings.max_record_bytes,
    )
    stack.callback(producer.close)
    return producer


def _is_local(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
