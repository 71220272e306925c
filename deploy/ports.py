"""Loopback ports: free ones, taken ones, and who has taken them."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import psutil

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ReservedPorts:
    """
    Free ports that nobody else is given while this is held.

    The sockets are bound but do not listen: with SO_REUSEADDR a server can still bind and listen
    there, while the kernel does not hand the port to anyone who asks for any free one.
    """

    sockets: tuple[socket.socket, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The port numbers."""
        return tuple(int(s.getsockname()[1]) for s in self.sockets)

    def __enter__(self) -> ReservedPorts:
        return self

    def __exit__(self, *_: object) -> None:
        for s in self.sockets:
            s.close()


def reserve(count: int) -> ReservedPorts:
    """Hold `count` free loopback ports.

    >>> with reserve(2) as held:
    ...     len(set(held.numbers)), is_free(held.numbers[0])
    (2, True)
    """
    sockets = []
    for _ in range(count):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((LOOPBACK, 0))
        sockets.append(s)
    return ReservedPorts(tuple(sockets))


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((LOOPBACK, port))
            s.listen()
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Who listens on `port`, for a message."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another process"
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or connection.laddr[1:] != (port,):
            continue
        if connection.pid is not None:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                break
    return "another process"
