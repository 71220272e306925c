"""What the HTTP server has beyond uvicorn, without a network; `test_attacks.py` has the rest."""

from __future__ import annotations

import asyncio

from inference.http import _Combining


class Transport:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.closing = True
        self.told.append("closed")

    def abort(self) -> None:
        self.close()

    def get_extra_info(self, name: str) -> None:
        raise NotImplementedError(name)


def test_head_and_body_of_an_answer_are_written_together():
    async def answered() -> list[bytes | str]:
        transport = Transport()
        combining = _Combining(transport, asyncio.get_running_loop())
        combining.write(b"head ")
        combining.write(b"body")
        assert transport.told == []
        await asyncio.sleep(0)
        combining.write(b"the next")
        await asyncio.sleep(0)
        return transport.told

    assert asyncio.run(answered()) == [b"head body", b"the next"]


def test_what_was_written_goes_out_before_the_end_and_nothing_after_it():
    async def closed() -> list[bytes | str]:
        transport = Transport()
        combining = _Combining(transport, asyncio.get_running_loop())
        combining.write(b"the last")
        combining.close()
        combining.write(b"too late")
        await asyncio.sleep(0)
        return transport.told

    assert asyncio.run(closed()) == [b"the last", "closed"]
