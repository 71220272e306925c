"""Ports: reserved ones stay ours, taken ones are told with their holder."""

from __future__ import annotations

import socket

from deploy.ports import holder, is_free, reserve


def test_a_server_can_listen_on_a_reserved_port() -> None:
    with reserve(1) as reserved, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", reserved.numbers[0]))
        server.listen()
        assert not is_free(reserved.numbers[0])
        assert "pid" in holder(reserved.numbers[0])
