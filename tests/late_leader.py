"""A broker whose new leader does not lead yet when the first records come."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

PRODUCE: Final = 0  # https://kafka.apache.org/protocol#protocol_api_keys
LOOPBACK: Final = "127.0.0.1"


@dataclass(slots=True)
class LateLeader:
    """
    Passes everything on to a real broker, but the first records sent to `topic`.

    Those go to a topic of the same length that does not exist, and the broker's own refusal comes
    back under the true name. Whatever is sent meanwhile arrives.
    """

    broker_port: int
    topic: bytes
    port: int = 0
    refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def bootstrap_servers(self) -> str:
        """What a client connects to; it is told of no other address."""
        return f"{LOOPBACK}:{self.port}"

    def ask(self, frame: bytes) -> bytes:
        """A client's request as the broker gets it."""
        if int.from_bytes(frame[:2]) != PRODUCE or self.topic not in frame:
            return frame
        with self._lock:
            if self.refused:
                return frame
            self.refused += 1
        return frame.replace(self.topic, self._nowhere(), 1)

    def answer(self, frame: bytes) -> bytes:
        """The broker's answer as the client gets it."""
        true, told = (LOOPBACK.encode() + p.to_bytes(4) for p in (self.broker_port, self.port))
        return frame.replace(true, told).replace(self._nowhere(), self.topic)

    def _nowhere(self) -> bytes:
        return b"x" * len(self.topic)


@contextmanager
def late_leader(broker_port: int, topic: str) -> Iterator[LateLeader]:
    """One that listens on a port of its own, until the block ends."""
    leader = LateLeader(broker_port, topic.encode())
    threads: list[threading.Thread] = []
    ends: list[socket.socket] = []
    with closing(socket.create_server((LOOPBACK, 0))) as listening:
        leader.port = listening.getsockname()[1]

        def accept() -> None:
            with suppress(OSError):  # closed
                while True:
                    client, _ = listening.accept()
                    broker = socket.create_connection((LOOPBACK, broker_port))
                    ends.extend((client, broker))
                    for work in (
                        partial(_pass_on, client, broker, leader.ask),
                        partial(_pass_on, broker, client, leader.answer),
                    ):
                        threads.append(threading.Thread(target=work, daemon=True))
                        threads[-1].start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield leader
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in ends:
                end.close()


def _pass_on(source: socket.socket, to: socket.socket, edit: Callable[[bytes], bytes]) -> None:
    """Frame by frame: four bytes of length, then so many."""
    with suppress(OSError):  # the other side is gone
        stream = source.makefile("rb")
        while len(head := stream.read(4)) == 4:
            frame = edit(stream.read(int.from_bytes(head)))
            to.sendall(len(frame).to_bytes(4) + frame)
        to.shutdown(socket.SHUT_WR)
