"""The real parts start, answer, and are what they claim to be."""

from __future__ import annotations

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from deploy import kafka as kafka_process
from deploy import valkey as valkey_process


@pytest.mark.kafka
def test_kafka_answers_on_loopback_only(kafka) -> None:
    host, port = kafka.bootstrap_servers.split(":")
    assert host == "127.0.0.1"
    assert kafka_process.answers(int(port))


@pytest.mark.valkey
def test_valkey_refuses_to_evict_and_is_new_enough(valkey) -> None:
    parts = urlsplit(valkey.url)
    with socket.create_connection((parts.hostname, parts.port), 5) as connection:
        connection.sendall(b"CONFIG GET maxmemory-policy\r\n")
        assert b"noeviction" in connection.recv(200)
    assert valkey_process.version(valkey_process.binary()) >= valkey_process.NEEDED


def test_names_are_unique(unique_name: Callable[[str], str]) -> None:
    assert unique_name("topic") != unique_name("topic")
