"""The embedded broker's settings hold what the rest relies on."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from deploy import kafka


def properties(partitions: int = 4) -> dict[str, str]:
    options = kafka.KafkaOptions(
        directory=Path("x"), cache_dir=Path("y"), port=1, controller_port=2, partitions=partitions
    )
    lines = kafka.server_properties(options).split()
    return dict(line.split("=", maxsplit=1) for line in lines)


def test_every_listener_is_on_loopback() -> None:
    listeners = properties()["listeners"].split(",")
    assert [listener.split("://")[1] for listener in listeners] == ["127.0.0.1:1", "127.0.0.1:2"]


def test_nothing_is_created_by_accident_and_old_records_are_taken() -> None:
    found = properties(partitions=7)
    assert found["auto.create.topics.enable"] == "false"
    assert found["num.partitions"] == "7"
    assert int(found["log.message.timestamp.before.max.ms"]) == 2**63 - 1


def test_a_port_where_nobody_or_somebody_else_listens_does_not_answer_as_kafka() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 this is not Kafka\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        assert not kafka.answers(port)
        thread.join()
    assert not kafka.answers(port)
