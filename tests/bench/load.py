"""
A light load: calls encoded beforehand, over kept connections, each with one call under way.

It shares the processors with the server, so answers are cut and their status is checked, no more.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Semaphore
from typing import Any

import grpc

from tests.bench.measure import CLOCK, TooSlow, own_cpu_s

ANSWER_S = 30.0
_READ = 1 << 18
_HEAD_END, _LENGTH = b"\r\n\r\n", b"\r\ncontent-length:"


class BadAnswer(Exception):
    """What came back is no answer, or no good one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a number of calls took."""

    taken_s: float
    latencies_s: Sequence[float]
    cpu_s: float  # of this process, all threads
    under_way: int  # calls at once
    answers: Sequence[bytes]  # in the order of the calls

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.taken_s


class Answers:
    """
    Cuts a connection's bytes into HTTP/1.1 answers that have a Content-Length.

    >>> cut = Answers()
    >>> cut.taken(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\no")
    []
    >>> cut.taken(b"k")
    [b'ok']
    """

    def __init__(self) -> None:
        self._held = b""

    def taken(self, data: bytes) -> list[bytes]:
        """
        The bodies that are whole now.

        Raises:
            BadAnswer: a status other than 200, or no length.
        """
        self._held += data
        found: list[bytes] = []
        while (end := self._held.find(_HEAD_END)) >= 0:
            start = end + len(_HEAD_END)
            length = _length(self._held[:end])
            if len(self._held) < start + length:
                break
            body = self._held[start : start + length]
            if not self._held.startswith(b"HTTP/1.1 200 "):
                raise BadAnswer(f"{self._held[: min(end, 100)]!r}: {body[:300]!r}")
            found.append(body)
            self._held = self._held[start + length :]
        return found


def _length(head: bytes) -> int:
    _, name, rest = head.lower().partition(_LENGTH)
    if not name:
        raise BadAnswer(f"an answer without Content-Length: {head[:300]!r}")
    return int(rest.partition(b"\r\n")[0])


def post(path: str, body: bytes) -> bytes:
    """A call of JSON as it is sent."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection:
    """One call at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._cut = Answers()
        self._at, self._sent_s = 0, 0.0

    def send(self, at: int, call: bytes) -> None:
        self._at, self._sent_s = at, CLOCK.monotonic_s()
        self.socket.sendall(call)

    def read(self) -> tuple[int, bytes, float] | None:
        """Place of the call, answer and seconds; None: it is not whole yet."""
        data = self.socket.recv(_READ)
        if not data:
            raise BadAnswer(f"the server closed the connection before answer {self._at}")
        bodies = self._cut.taken(data)
        if len(bodies) > 1:
            raise BadAnswer(f"{len(bodies)} answers to one call")
        return (self._at, bodies[0], CLOCK.monotonic_s() - self._sent_s) if bodies else None


def over_http(port: int, calls: Sequence[bytes], connections: int) -> Load:
    """
    Every call once; a connection sends its next when it has its answer.

    Raises:
        BadAnswer, TooSlow: a call was not answered with 200, or not at all.
    """
    made = [_Connection(port) for _ in range(min(connections, len(calls)))]
    answers: list[bytes] = [b""] * len(calls)
    latencies_s = [0.0] * len(calls)
    cpu_s, start_s = own_cpu_s(), CLOCK.monotonic_s()
    with selectors.DefaultSelector() as selector:
        left = iter(enumerate(calls))
        for one, (at, call) in zip(made, left, strict=False):
            selector.register(one.socket, selectors.EVENT_READ, one)
            one.send(at, call)
        for at, body, latency_s in _answered(selector, left, len(calls)):
            answers[at], latencies_s[at] = body, latency_s
    taken_s = CLOCK.monotonic_s() - start_s
    cpu_s = own_cpu_s() - cpu_s
    for one in made:
        one.socket.close()
    return Load(
        taken_s=taken_s, latencies_s=latencies_s, cpu_s=cpu_s, under_way=len(made), answers=answers
    )


def _answered(
    selector: selectors.BaseSelector, left: Iterator[tuple[int, bytes]], count: int
) -> Iterator[tuple[int, bytes, float]]:
    """Each answer as it comes."""
    while count:
        ready = selector.select(ANSWER_S)
        if not ready:
            raise TooSlow(f"no answer for {ANSWER_S:g} s, {count} are left")
        for key, _ in ready:
            if (found := key.data.read()) is None:
                continue
            if (following := next(left, None)) is not None:
                key.data.send(*following)
            count -= 1
            yield found


def over_grpc(port: int, method: str, messages: Sequence[bytes], under_way: int) -> Load:
    """
    Every message once, on one connection, so many calls under way.

    Raises:
        grpc.RpcError: a call failed.
    """
    answers: list[bytes] = [b""] * len(messages)
    latencies_s = [0.0] * len(messages)
    free = Semaphore(under_way)
    failed: list[Exception] = []

    def noted(at: int, sent_s: float, future: Any) -> None:
        latencies_s[at] = CLOCK.monotonic_s() - sent_s
        if (error := future.exception()) is not None:
            failed.append(error)
        else:
            answers[at] = future.result()
        free.release()

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(ANSWER_S)
        call = channel.unary_unary(method)
        cpu_s, start_s = own_cpu_s(), CLOCK.monotonic_s()
        for at, message in enumerate(messages):
            free.acquire()
            sent_s = CLOCK.monotonic_s()
            future = call.future(message, timeout=ANSWER_S)
            future.add_done_callback(lambda done, at=at, sent_s=sent_s: noted(at, sent_s, done))
        for _ in range(under_way):
            free.acquire()
        taken_s = CLOCK.monotonic_s() - start_s
        cpu_s = own_cpu_s() - cpu_s
    if failed:
        raise failed[0]
    return Load(
        taken_s=taken_s, latencies_s=latencies_s, cpu_s=cpu_s, under_way=under_way, answers=answers
    )
