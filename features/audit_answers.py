"""The answers of some users, as the log of recommendations has them, ready to be audited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.declare import Array, FeatureSet
from features.hashing import hash_ids, salted
from features.shown import Shown, ShownReader, concat_lists, sliced
from ingest.batches import picked
from ingest.log import Log, RecordBatch, Source
from ingest.reading import until_end
from ingest.topics import Topics
from schemas.columns import ColumnReader
from schemas.events import Recommendation
from schemas.registry import Registry

_SALT: Final = "audit"
_TOP: Final = 2**64 - 1
_POSITIONS: Final = ("events_partition", "events_offset")
_CONTEXT: Final = ("surface", "device", "country", "fallback_reason")


class UserSample:
    """
    Users chosen by a hash of their id: the same ones in every audit, whatever they do.

    >>> UserSample(share=1.0).admit(np.array([3, 9], np.uint64)).tolist()
    [True, True]
    >>> sample = UserSample(users=1)
    >>> sample.admit(hash_ids(["ann", "bob", "ann"])).sum() in (1, 2)
    True
    """

    def __init__(self, *, share: float = 1.0, users: int | None = None) -> None:
        """All below a share of the hashes, and of them the `users` lowest."""
        if not 0 < share <= 1 or (users is not None and users < 1):
            raise ValueError(f"share must be in (0, 1], users at least 1, got {share}, {users}")
        self._most = users
        self._limit = np.uint64(min(round(share * 2**64), _TOP))
        self._lowest = np.zeros(0, np.uint64)

    def admit(self, user_hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these are chosen, as far as is known yet: later ones may push them out."""
        if self._most is not None:
            place = salted(user_hashes, _SALT)
            below = np.concatenate([self._lowest, place[place <= self._limit]])
            self._lowest = np.unique(below)[: self._most]
            if len(self._lowest) == self._most:
                self._limit = self._lowest[-1]
        return self.holds(user_hashes)

    def holds(self, user_hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these are chosen."""
        return salted(user_hashes, _SALT) <= self._limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """Where the rows of every partition stood at a time, as all answers tell it."""

    partitions: int
    partition: NDArray[np.int64]  # [n] in order of time
    offset: NDArray[np.int64]
    answered_ms: NDArray[np.int64]

    def at_least(self, ms: int) -> list[int]:
        """By partition, how far its rows had been read by then; 0: nobody said so."""
        stop = int(np.searchsorted(self.answered_ms, ms, "right"))
        found = np.zeros(self.partitions, np.int64)
        np.maximum.at(found, self.partition[:stop], self.offset[:stop])
        return [int(offset) for offset in found]

    def at_most(self, ms: int, ends: Sequence[int]) -> list[int]:
        """By partition, where its rows stood when first read after that; `ends`: never since."""
        start = int(np.searchsorted(self.answered_ms, ms))
        found = np.array(ends, np.int64)
        np.minimum.at(found, self.partition[start:], self.offset[start:])
        return [int(offset) for offset in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """n answers that can be compared, of sampled users."""

    lists: Shown
    partition: NDArray[np.int64]  # [n]
    answered_ms: NDArray[np.int64]  # [n] record timestamps
    surface: NDArray[np.uint64]  # [n] hashes
    device: NDArray[np.uint64]
    country: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.answered_ms)

    def take(self, keep: NDArray[np.bool_]) -> Answers:
        """Those under a mask."""
        at = np.flatnonzero(keep).tolist()
        lists = [sliced(self.lists, i, i + 1) for i in at] or [sliced(self.lists, 0, 0)]
        columns = {
            f.name: getattr(self, f.name)[keep] for f in fields(Answers) if f.name != "lists"
        }
        return Answers(lists=concat_lists(lists), **columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAnswers:
    """What the topic says."""

    answers: Answers | None  # None: not one can be compared
    standings: Standings
    skipped: Mapping[str, int]  # reason -> answers of sampled users that cannot be compared
    left_out: int


class AnswerReader:
    """Reads recommendations once, from the start to the present end."""

    def __init__(self, registry: Registry, features: FeatureSet, sample: UserSample) -> None:
        self._sample = sample
        self._shown = ShownReader(ColumnReader(registry, Recommendation), features)
        self._columns = ColumnReader(registry, Recommendation)
        self._parts: list[Answers] = []
        self._skipped: Counter[str] = Counter()
        self._positions: list[tuple[Array, Array, Array]] = []
        self._left_out = 0

    def read(
        self, log: Log, source: Source, topics: Topics, *, since_ms: int, most: int
    ) -> ReadAnswers:
        """The newest answers since a time, `most` or a batch more."""
        partitions = log.partitions(topics.recommendations)
        for batch in until_end(log, source, [topics.recommendations]):
            self._stand(batch)
            users = hash_ids([(key or b"").decode(errors="replace") for key in batch.keys])
            wanted = self._sample.admit(users) & (batch.timestamps_ms >= since_ms)
            if wanted.any():
                self._take(picked(batch, wanted), partitions)
                self._trim(most)
        return ReadAnswers(
            answers=self._chosen(most),
            standings=self._standings(partitions),
            skipped=+self._skipped,
            left_out=self._left_out,
        )

    def _stand(self, batch: RecordBatch) -> None:
        """Note where the rows of all answers stood."""
        decoded = self._columns.read(batch.values, _POSITIONS)
        at = decoded.frame["events_partition"].to_numpy().astype(np.int64)
        offset = decoded.frame["events_offset"].to_numpy().astype(np.int64)
        known = (offset >= 0) & (at == batch.partition)
        stamps = batch.timestamps_ms[decoded.index]
        self._positions.append((at[known], offset[known], stamps[known]))

    def _standings(self, partitions: int) -> Standings:
        none = np.zeros(0, np.int64)
        parts = self._positions or [(none, none, none)]
        partition, offset, stamps = (np.concatenate(c) for c in zip(*parts, strict=True))
        order = np.argsort(stamps, kind="stable")
        return Standings(
            partitions=partitions,
            partition=partition[order],
            offset=offset[order],
            answered_ms=stamps[order],
        )

    def _take(self, batch: RecordBatch, partitions: int) -> None:
        lists, skipped = self._shown.read(batch, partitions)
        self._skipped += skipped
        if not len(lists):
            return
        decoded = self._columns.read(batch.values, _CONTEXT)
        at = np.searchsorted(batch.offsets[decoded.index], lists.offset)
        frame = decoded.frame[at]
        found = Answers(
            lists=lists,
            partition=np.full(len(lists), batch.partition, np.int64),
            answered_ms=batch.timestamps_ms[decoded.index[at]],
            surface=hash_ids(frame["surface"].to_list()),
            device=hash_ids(frame["device"].to_list()),
            country=hash_ids(frame["country"].to_list()),
        )
        # Its user's row was unreadable: it was served as unknown, and said so.
        said_so = frame.select(pl.col("fallback_reason") == "corrupt-row")
        soft = said_so.to_series().fill_null(value=False).to_numpy()
        self._skipped["corrupt row"] += int(soft.sum())
        self._parts.append(found.take(~soft) if soft.any() else found)

    def _trim(self, most: int) -> None:
        """Drop the oldest batches that the newest `most` do without."""
        self._parts.sort(key=lambda part: int(part.answered_ms.max(initial=0)))
        while self._parts and sum(map(len, self._parts[1:])) >= most:
            self._left_out += len(self._parts.pop(0))

    def _chosen(self, most: int) -> Answers | None:
        """The newest of those that stayed in the sample."""
        parts = [part.take(self._sample.holds(part.lists.user_hash)) for part in self._parts]
        parts = [part for part in parts if len(part)]
        if not parts:
            return None
        columns = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(Answers)
            if f.name != "lists"
        }
        found = Answers(lists=concat_lists([part.lists for part in parts]), **columns)
        if len(found) <= most:
            return found
        newest = np.zeros(len(found), bool)
        newest[np.argsort(found.answered_ms, kind="stable")[-most:]] = True
        self._left_out += len(found) - most
        return found.take(newest)
