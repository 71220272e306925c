"""The real parts that tests share: one broker, one store, one registry for each pytest process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

import pytest

from deploy import flink as flink_process
from deploy import kafka as kafka_process
from deploy import ports
from deploy import registry as registry_process
from deploy import valkey as valkey_process
from deploy import valkey_cluster as cluster_process
from deploy.supervise import Service, Supervisor
from ingest.clock import Clock, SystemClock
from ingest.settings import Settings
from schemas.errors import Misconfigured
from tests.flink_world import Cluster

# A part that already runs may be used instead of a new one: TEST_KAFKA=127.0.0.1:19092.
REUSE_KAFKA = "TEST_KAFKA"
REUSE_VALKEY = "TEST_VALKEY"
REUSE_REGISTRY = "TEST_REGISTRY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """A real broker."""

    bootstrap_servers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Valkey:
    """A real store. Shared: use keys of your own, or flush it and say so in the test."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ValkeyCluster:
    """A real store in cluster mode. Shared: use keys of your own; nothing may be killed."""

    options: cluster_process.ClusterOptions

    @property
    def url(self) -> str:
        return self.options.url


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryServer:
    """The stack's schema registry, as a process."""

    url: str


@pytest.fixture(scope="session")
def supervisor() -> Iterator[Supervisor]:
    """Owner of the session's processes: they die with pytest, however it ends."""
    with Supervisor() as running:
        yield running


@pytest.fixture(scope="session")
def kafka(supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> Kafka:
    """A real Apache Kafka, started when first asked for."""
    if REUSE_KAFKA in os.environ:  # noqa: TID251
        return Kafka(bootstrap_servers=os.environ[REUSE_KAFKA])  # noqa: TID251
    with ports.reserve(2) as reserved:
        port, controller_port = reserved.numbers
        options = kafka_process.KafkaOptions(
            directory=tmp_path_factory.mktemp("kafka"),
            cache_dir=Settings().cache_dir,
            port=port,
            controller_port=controller_port,
        )
        _start(supervisor, lambda: kafka_process.service(options))
    return Kafka(bootstrap_servers=options.bootstrap_servers)


@pytest.fixture(scope="session")
def valkey(supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> Valkey:
    """A real valkey-server without persistence, started when first asked for."""
    if REUSE_VALKEY in os.environ:  # noqa: TID251
        return Valkey(url=os.environ[REUSE_VALKEY])  # noqa: TID251
    with ports.reserve(1) as reserved:
        options = valkey_process.ValkeyOptions(
            directory=tmp_path_factory.mktemp("valkey"), port=reserved.numbers[0], durable=False
        )
        _start(supervisor, lambda: valkey_process.service(options))
    return Valkey(url=options.url)


@pytest.fixture(scope="session")
def valkey_cluster(
    supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory
) -> ValkeyCluster:
    """Three valkey-servers that are one cluster, started when first asked for."""
    with ports.reserve(6) as reserved:
        options = cluster_process.ClusterOptions(
            directory=tmp_path_factory.mktemp("cluster"), ports=reserved.numbers
        )
        _started(lambda: cluster_process.start(options, supervisor))
    return ValkeyCluster(options=options)


@pytest.fixture(scope="session")
def registry(supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> RegistryServer:
    """The stack's registry, started when first asked for."""
    if REUSE_REGISTRY in os.environ:  # noqa: TID251
        return RegistryServer(url=os.environ[REUSE_REGISTRY])  # noqa: TID251
    with ports.reserve(1) as reserved:
        options = registry_process.RegistryOptions(
            directory=tmp_path_factory.mktemp("registry"), port=reserved.numbers[0]
        )
        _start(supervisor, lambda: registry_process.service(options))
    return RegistryServer(url=options.url)


@pytest.fixture(scope="session")
def flink(supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A real Flink cluster of two TaskManagers, started when first asked for."""
    directory = tmp_path_factory.mktemp("flink")
    with ports.reserve(5) as reserved:
        names = [f.name for f in fields(flink_process.FlinkPorts)]
        options = flink_process.FlinkOptions(
            directory=directory,
            cache_dir=Settings().cache_dir,
            ports=flink_process.FlinkPorts(**dict(zip(names, reserved.numbers, strict=True))),
        )
        try:
            services = flink_process.services(options, directory / "logs")
        except Misconfigured as error:
            missing(str(error))
        supervisor.start_together(services)
    return Cluster(
        options=options, services=services, supervisor=supervisor, logs=directory / "logs"
    )


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """`unique_name("events")` -> a topic, group or key prefix that nobody else uses."""
    return lambda prefix: f"{prefix}-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """`eventually(condition, timeout_s)`: wait until the condition holds, or fail."""
    return _eventually


def _eventually(
    condition: Callable[[], object], timeout_s: float = 30.0, clock: Clock | None = None
) -> None:
    clock = clock or SystemClock()
    deadline_s = clock.monotonic_s() + timeout_s
    while not condition():
        if clock.monotonic_s() > deadline_s:
            pytest.fail(f"not so within {timeout_s:g} s: {_source(condition)}")
        clock.sleep(0.02)


def _source(condition: Callable[[], object]) -> str:
    code = getattr(condition, "__code__", None)
    if code is None:
        return repr(condition)
    return f"{condition.__qualname__} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def _start(supervisor: Supervisor, service: Callable[[], Service]) -> None:
    _started(lambda: supervisor.start(service()))


def _started(start: Callable[[], object]) -> None:
    try:
        start()
    except Misconfigured as error:
        missing(str(error))


def missing(problem: str) -> NoReturn:
    """A part that is not there: an error where everything must be (CI), else a skip."""
    message = f"{problem} (to get everything: `make setup`)"
    if os.environ.get("CI") == "true":  # noqa: TID251
        pytest.fail(message)
    pytest.skip(message)
