"""Where a row that should not have been served does stand in the log: ahead, behind, nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features import rows as row_format
from features.assemble import assemble_users
from features.audit_answers import Answers
from features.declare import UserContext
from features.outlets import NoOutlets
from features.refold import RebuildParts, Tape
from features.store_memory import MemoryStore
from ingest.batches import part, picked
from ingest.log import RecordBatch, Source, TopicPartition


def explained(
    refold: RebuildParts, answers: Answers, wrong: NDArray[np.int64], names: Sequence[str]
) -> tuple[int, list[str]]:
    """
    Look into some wrong answers: the log is read again for their users alone, event by event.

    Args:
        names: the wrong features of each.

    Returns:
        How many were served from events at or after their position, and what to say of each.
    """
    at: dict[int, int | None] = dict.fromkeys(wrong.tolist())
    for partition in np.unique(answers.partition[wrong]).tolist():
        mine = [i for i in at if answers.partition[i] == partition]
        by_user: dict[str, list[int]] = defaultdict(list)
        for i in mine:
            by_user[answers.lists.user_id[i]].append(i)
        for offset, user, row in _moments(refold, partition, by_user):
            for i in by_user[user]:
                if _served_from(refold, answers, i, row):
                    at[i] = _nearer(at[i], offset, int(answers.lists.events_offset[i]))
    said = [_said(answers, i, at[i], name) for i, name in zip(at, names, strict=True)]
    leaks = sum(o is not None and o > int(answers.lists.events_offset[i]) for i, o in at.items())
    return leaks, said


def _nearer(known: int | None, offset: int, recorded: int) -> int:
    """Of two offsets that explain an answer, the one nearer to what it recorded."""
    if known is None:
        return offset
    return min(known, offset, key=lambda one: abs(one - recorded))


def _served_from(refold: RebuildParts, answers: Answers, i: int, row: bytes | None) -> bool:
    """Whether an answer's user features are those of this row."""
    context = UserContext(
        rows=row_format.decode([row], refold.features.fingerprint).rows,
        now_ms=answers.lists.event_time[i : i + 1],
        surface=answers.surface[i : i + 1],
        device=answers.device[i : i + 1],
        country=answers.country[i : i + 1],
    )
    users, served = assemble_users(refold.features, context), answers.lists.users
    pairs = ((users.longs[0], served.longs[i]), (users.floats[0], served.floats[i]))
    return all(one.tobytes() == other.tobytes() for one, other in pairs)


def _said(answers: Answers, i: int, at: int | None, names: str) -> str:
    recorded = int(answers.lists.events_offset[i])
    place = f"{answers.lists.request_id[i]} of {answers.lists.user_id[i]}, position {recorded}"
    if at is None:
        return f"{place}: {names}; the log gives this at no offset"
    how = "ahead of" if at > recorded else "behind"
    return f"{place}: {names}; the log gives this at {at}, {how} the position"


def _moments(
    refold: RebuildParts, partition: int, users: Mapping[str, object]
) -> Iterator[tuple[int, str, bytes | None]]:
    """(next offset, user, row) of these users: before their first event, and after each."""
    yield from ((0, user, None) for user in users)
    keys = frozenset(user.encode() for user in users)
    only = replace(refold, open_source=lambda: _Filtered(refold.open_source(), keys))
    start, end = refold.start(partition)
    memory = MemoryStore()
    worker = only.worker(memory, NoOutlets())
    worker.take(memory.claim(partition, start))
    tape, offset = Tape(only, partition, start.next_offset), start.next_offset
    try:
        while offset < end:
            batch = tape.before(end)
            for i in range(max(1, len(batch))):
                one = part(batch, i, min(i + 1, len(batch)))
                worker.process(one)
                for user in {(key or b"").decode() for key in one.keys}:
                    row = memory.snapshots({partition: [user]})[partition].rows[0]
                    yield one.next_offset, user, row
            offset = batch.next_offset
    finally:
        tape.close()


class _Filtered:
    """A source that keeps the records of some keys, and every position."""

    def __init__(self, source: Source, keys: Collection[bytes]) -> None:
        self._source, self._keys = source, keys

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._source.assign(positions)

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        batch = self._source.poll(max_records, timeout_s)
        if batch is None:
            return None
        return picked(batch, np.array([key in self._keys for key in batch.keys], bool))

    def close(self) -> None:
        self._source.close()
