"""
The parts that Millstream stands on, as processes of this machine: Kafka, Valkey, the registry, and
if asked for a Flink cluster.

They go on when the command that started them ends. `state.json` says which processes they are; a
process that is gone, or whose pid has gone to another, counts as down.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from urllib.parse import urlsplit

from deploy import flink, kafka, own_version, registry, valkey
from deploy.ports import LOOPBACK, holder, is_free, reserve
from deploy.supervise import Child, Service, start, stop, wait_ready
from features.runner import JobServer
from ingest.clock import Clock, SystemClock
from ingest.settings import Settings
from schemas.errors import Misconfigured

_LOCAL = {LOOPBACK, "localhost"}
# Everything that belongs to one life of the log; removed together or not at all.
_DATA = ("kafka", "valkey", "registry", "archive", "models", "keys")
_FLINK, _PORTS = "flink", "ports.json"
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the stack: where it shall be, and how to run it there."""

    name: str
    setting: str  # the setting that names its address
    address: str
    host: str
    ports: tuple[int, ...]
    version: Callable[[], str]
    service: Callable[[], Service]
    answers: Callable[[], bool]

    @property
    def local(self) -> bool:
        """Whether its address is on this machine; else it is somebody else's and left alone."""
        return self.host in _LOCAL


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """What `millstream stack status` tells of one part."""

    name: str
    state: str  # up | starting | down | elsewhere
    address: str
    version: str
    pid: int | None
    resident_bytes: int
    log: str


def parts(settings: Settings, partitions: int) -> tuple[Part, ...]:
    """
    The parts in the order of their start.

    Raises:
        Misconfigured: an address without a port.
    """
    root = settings.stack_dir
    kafka_host, kafka_port = _address("bootstrap_servers", f"kafka://{settings.bootstrap_servers}")
    redis_host, redis_port = _address("redis_url", settings.redis_url)
    registry_host, registry_port = _address("registry_url", settings.registry_url)
    broker = kafka.KafkaOptions(
        directory=root / "kafka",
        cache_dir=settings.cache_dir,
        port=kafka_port,
        controller_port=kafka_port + 1,
        partitions=partitions,
    )
    store = valkey.ValkeyOptions(directory=root / "valkey", port=redis_port, durable=True)
    schemas = registry.RegistryOptions(directory=root / "registry", port=registry_port)
    return (
        Part(
            name="kafka",
            setting="bootstrap_servers",
            address=settings.bootstrap_servers,
            host=kafka_host,
            ports=(kafka_port, kafka_port + 1),
            version=lambda: f"Apache Kafka {kafka.VERSION}",
            service=lambda: kafka.service(broker, log=root / "logs" / "kafka.log"),
            answers=lambda: kafka.answers(kafka_port),
        ),
        Part(
            name="valkey",
            setting="redis_url",
            address=settings.redis_url,
            host=redis_host,
            ports=(redis_port,),
            version=lambda: "Valkey " + ".".join(map(str, valkey.version(valkey.binary()))),
            service=lambda: valkey.service(store, log=root / "logs" / "valkey.log"),
            answers=lambda: valkey.answers(redis_port),
        ),
        Part(
            name="registry",
            setting="registry_url",
            address=settings.registry_url,
            host=registry_host,
            ports=(registry_port,),
            version=lambda: f"millstream {own_version()}",
            service=lambda: registry.service(schemas, log=root / "logs" / "registry.log"),
            answers=lambda: registry.answers(registry_port),
        ),
    )


def up(
    settings: Settings,
    partitions: int,
    *,
    with_flink: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    clock: Clock | None = None,
) -> list[str]:
    """
    Start what is not up, wait until all of it answers. The names of the parts started now.

    Args:
        tell: is given a line for each step.

    Raises:
        Misconfigured: a port is taken, jars cannot be had, a part runs at another address.
        ProcessFailed: a part did not come up.
    """
    clock = clock or SystemClock()
    wanted = [part for part in parts(settings, partitions) if part.local]
    with _locked(settings.stack_dir):
        running = _read_state(settings.stack_dir)
        if with_flink:
            wanted += flink_parts(_flink_options(settings) or _new_flink_options(settings))
        _check(wanted, running)
        started: dict[str, tuple[Service, Child]] = {}
        for part in wanted:
            if part.name in running:
                continue
            tell(f"starting {part.name}")
            service = part.service()
            child = start(service, tied=False)
            started[part.name] = (service, child)
            running[part.name] = _Running(child=child, address=part.address)
            _write_state(settings.stack_dir, running)
        for name, (service, child) in started.items():
            tell(f"waiting for {name}")
            wait_ready(service, child, clock)
    return list(started)


def create_topics(settings: Settings, partitions: int) -> list[str]:
    """
    Make the topics exist, fit for replays of old data. The names created now.

    Raises:
        Misconfigured: one exists with another number of partitions.
    """
    from ingest.kafka import KafkaAdmin  # noqa: PLC0415 - status and down need no client
    from ingest.topics import ensure_topics, topic_specs  # noqa: PLC0415

    admin = KafkaAdmin(settings.bootstrap_servers, settings.timeout_s)
    return ensure_topics(admin, topic_specs(settings.topic_prefix, partitions, replay=True))


def down(
    settings: Settings, *, delete_data: bool = False, clock: Clock | None = None
) -> dict[str, bool]:
    """Stop what runs, the last started first. Name -> whether it stopped by itself. Idempotent."""
    clock = clock or SystemClock()
    root = settings.stack_dir
    stopped: dict[str, bool] = {}
    if not root.exists():
        return stopped
    with _locked(root):
        running = _read_state(root)
        for name in reversed(list(running)):
            child = running.pop(name).child
            stopped[name] = stop(child, timeout_s=_STOP_TIMEOUT_S, clock=clock)
            _write_state(root, running)
        shutil.rmtree(root / _FLINK, ignore_errors=True)  # scratch, and the ports it had
        if delete_data:
            for name in _DATA:
                shutil.rmtree(root / name, ignore_errors=True)
    return stopped


def status(settings: Settings) -> list[PartStatus]:
    """How each part is now. Changes nothing."""
    running = _read_state(settings.stack_dir)
    found = list(parts(settings, partitions=1))
    options = _flink_options(settings)
    if options is not None:
        found += flink_parts(options)
    return [_status(part, running.get(part.name)) for part in found]


def flink_parts(options: flink.FlinkOptions) -> list[Part]:
    """The processes of a Flink cluster in the order of their start."""
    logs = options.directory.parent / "logs"
    services = cache(lambda: {one.name: one for one in flink.services(options, logs)})
    return [
        Part(
            name=name,
            setting="",
            address=flink.address(options, name),
            host=LOOPBACK,
            ports=(),  # chosen free when the cluster was first asked for
            version=lambda: f"Apache Flink {flink.VERSION}",
            service=partial(_of, services, name),
            answers=partial(flink.answers, options, name),
        )
        for name in options.processes
    ]


def _of(services: Callable[[], Mapping[str, Service]], name: str) -> Service:
    return services()[name]


def flink_server(settings: Settings) -> JobServer:
    """
    The job server of this stack's Flink.

    Raises:
        Misconfigured: the stack has no Flink, or it does not answer.
    """
    options = _flink_options(settings)
    if options is None or not flink.answers(options, "job-server"):
        raise Misconfigured("Flink is not up: run `millstream stack up --flink`")
    return options.server


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A line of the state file."""

    child: Child
    address: str


def _status(part: Part, running: _Running | None) -> PartStatus:
    child = running.child if running else None
    answers = part.local and part.answers()
    if not part.local:
        state = "elsewhere"
    elif child is None:
        state = "elsewhere" if answers else "down"  # it answers, and is not of this stack
    else:
        state = "up" if answers else "starting"
    return PartStatus(
        name=part.name,
        state=state,
        address=running.address if running else part.address,
        version=part.version() if part.local else "",
        pid=child.pid if child else None,
        resident_bytes=child.resident_bytes() if child else 0,
        log=child.log if child else "",
    )


def _check(wanted: list[Part], running: Mapping[str, _Running]) -> None:
    """Every problem that is seen before anything is started, in one message."""
    problems = []
    for part in wanted:
        here = running.get(part.name)
        if here is not None and here.address != part.address:
            problems.append(
                f"{part.name} already runs at {here.address}, asked for {part.address}: "
                "run `millstream stack down` first"
            )
        if here is None:
            problems += [_taken(part, port) for port in part.ports if not is_free(port)]
    if problems:
        raise Misconfigured("; ".join(problems))


def _taken(part: Part, port: int) -> str:
    option = "--" + part.setting.replace("_", "-")
    return (
        f"port {port}, wanted for {part.name}, is taken by {holder(port)}: stop that, "
        f"or choose another address with {option} or MILLSTREAM_{part.setting.upper()}"
    )


def _address(setting: str, url: str) -> tuple[str, int]:
    first = url.split(",", maxsplit=1)[0]
    try:
        split = urlsplit(first)
        host, port = split.hostname, split.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise Misconfigured(f"{setting} needs a host and a port, got {url!r}")
    return host, port


def _flink_options(settings: Settings) -> flink.FlinkOptions | None:
    """Of the cluster that was asked for; None if there is none."""
    try:
        written = json.loads((settings.stack_dir / _FLINK / _PORTS).read_text())
    except FileNotFoundError:
        return None
    return _flink_on(settings, flink.FlinkPorts(**written))


def _new_flink_options(settings: Settings) -> flink.FlinkOptions:
    """On ports that are free now, which are written down: what is started later finds the rest."""
    names = [f.name for f in fields(flink.FlinkPorts)]
    with reserve(len(names)) as reserved:
        ports = flink.FlinkPorts(**dict(zip(names, reserved.numbers, strict=True)))
    directory = settings.stack_dir / _FLINK
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _PORTS).write_text(json.dumps(asdict(ports)) + "\n")
    return _flink_on(settings, ports)


def _flink_on(settings: Settings, ports: flink.FlinkPorts) -> flink.FlinkOptions:
    return flink.FlinkOptions(
        directory=settings.stack_dir / _FLINK, cache_dir=settings.cache_dir, ports=ports
    )


def _state_file(root: Path) -> Path:
    return root / "state.json"


def _read_state(root: Path) -> dict[str, _Running]:
    """What is written down and still alive, in the order of its start."""
    try:
        written = json.loads(_state_file(root).read_text())
        found = {
            name: _Running(child=Child(**entry["child"]), address=entry["address"])
            for name, entry in written.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(
            f"{_state_file(root)} is not readable ({error}): stop Kafka, Valkey and the registry "
            "by hand if they run, then delete this file"
        ) from error
    return {name: running for name, running in found.items() if running.child.alive()}


def _write_state(root: Path, running: Mapping[str, _Running]) -> None:
    text = json.dumps({name: asdict(one) for name, one in running.items()}, indent=1)
    path = _state_file(root)
    fresh = path.with_suffix(".new")
    fresh.write_text(text + "\n")
    os.replace(fresh, path)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time; a second one waits."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
