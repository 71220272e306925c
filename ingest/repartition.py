"""
Repartition: the topics of a prefix copied to those of the next, with another number of partitions.

A topic keeps its count for life, so the copies have names of their own (`next_prefix`). A record
keeps its key, bytes, timestamp and headers, and carries its first place in a header; the old
partitions are merged by timestamp, so that the order of each key is kept and time does not jump
back. How far each old partition has been copied stands in `copied`, a topic of the new prefix, and
is written in the transaction of the records: whoever goes on after a crash copies none twice.
`item-features` is not copied: its keys hold partitions. It comes from the rows' rebuild.

The switch is a topic `moved` of the old prefix: what starts there afterwards is told where to go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ingest.log import TopicPartition
from ingest.reading import until_end
from ingest.topic_copy import CopyParts, Done, TopicCopy
from ingest.topics import (
    COMPACTED,
    MOVED,
    Topics,
    TopicSpec,
    TopicState,
    check_not_moved,
    ensure_topics,
    next_prefix,
    serving_group,
    topic_specs,
)
from schemas import events
from schemas.errors import Misconfigured, Refused

COPIED: Final = "copied"
NAMES: Final = tuple(name for name in events.RECORD_OF_TOPIC if name != events.ITEM_FEATURES)
# The header that says where a record was first must still fit.
HEADER_BYTES: Final = 1_024


class FoldedRows(Protocol):
    """What is folded from user-events. `features.repartitioned` provides one."""

    def passed(self, prefix: str) -> Mapping[int, int]:
        """Partition -> offset before which every misplaced event has been sent on."""

    def rebuild(self, prefix: str, former: int) -> None:
        """Fold the topics of that prefix into the store, which held `former` partitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedTopic:
    """One topic after a pass."""

    name: str
    records: int  # copied by this pass
    total: int  # copied by all
    behind: int  # offsets that have come meanwhile


class Repartition:
    """Copies the topics of a prefix. One at a time: a second one fences the first."""

    def __init__(self, parts: CopyParts, prefix: str, partitions: int) -> None:
        self._parts = parts
        self.old, self.new = Topics(prefix), Topics(next_prefix(prefix))
        self._partitions = partitions
        self._copied = self.new.prefix + COPIED

    def copy(
        self, rows: FoldedRows, on_progress: Callable[[int], None] = lambda _: None
    ) -> list[CopiedTopic]:
        """
        Copy what is not yet copied, up to where each topic ends now.

        Of a misplaced event that the rows have passed only the copy that was sent on is taken: it
        stands where the event was folded.

        Raises:
            Misconfigured: a topic is missing, or a copy to another number has begun.
            Retryable: the broker failed; what was committed is kept: run it again.
            PositionMoved: another copy of this prefix took over.
        """
        specs = self._create()
        # Opened first: what a killed predecessor left open is settled before its progress is read.
        producer = self._parts.open_producer(f"{self.old.prefix}repartition")
        try:
            done = self._done()
            found = []
            passed = rows.passed(self.old.prefix)
            for name in NAMES:
                old, spec = self.old.prefix + name, specs[name]
                given = passed if name == events.USER_EVENTS else {}
                copying = TopicCopy(self._parts, old, spec, self._copied)
                records = copying.run(producer, done, given, on_progress)
                found.append(self._summary(name, records, done))
        finally:
            producer.close()
        return found

    def switch(
        self, rows: FoldedRows, on_progress: Callable[[int], None] = lambda _: None
    ) -> list[CopiedTopic]:
        """
        Copy the rest and let the new topics take the old ones' place.

        The order: 1. copy what is left; 2. prove that nothing comes any more and that every record
        is there once; 3. let the serving group stand behind the requests that it has answered;
        4. fold the rows from the new topics; 5. prove again that nothing has come; 6. create
        `moved`. A crash before 6 leaves the old topics as they were, and all of it can be repeated.

        Raises:
            Refused: something still produces, requests wait, or records are missing.
        """
        copied = self.copy(rows, on_progress)
        done = self._done()
        self._check_still(done)
        self._check_whole(done)
        self._move_serving()
        rows.rebuild(self.new.prefix, self._parts.log.partitions(self.old.user_events))
        self._check_still(done)
        spec = TopicSpec(name=self.old.prefix + MOVED, partitions=1, cleanup="compact")
        ensure_topics(self._parts.admin, [spec])
        return copied

    def _check_still(self, done: Mapping[TopicPartition, Done]) -> None:
        found = (self._summary(name, 0, done) for name in NAMES)
        behind = [f"{topic.name} ({topic.behind})" for topic in found if topic.behind]
        if behind:
            raise Refused(
                f"records still come: {', '.join(behind)}. Stop what produces to these topics "
                "(clients, simulate, replay, serve, features run) and run it again"
            )

    def _check_whole(self, done: Mapping[TopicPartition, Done]) -> None:
        """Count the records of every topic that keeps all of them."""
        source = self._parts.open_source()
        try:
            for name in NAMES:
                topic = self.new.prefix + name
                if any(first for first, _ in self._parts.log.bounds(topic).values()):
                    continue  # retention deletes by the records' old timestamps here too
                if name in COMPACTED:
                    continue  # an older version of a key may be gone
                found = sum(len(batch) for batch in until_end(self._parts.log, source, [topic]))
                expected = self._summary(name, 0, done).total
                if found != expected:
                    raise Refused(f"{topic} holds {found} records, and {expected} were copied")
        finally:
            source.close()

    def _move_serving(self) -> None:
        group = serving_group(self.old.prefix)
        offsets = self._parts.groups.offsets(group, self.old.requests)
        if not offsets:
            return  # nobody has served here: whoever does begins at the start
        bounds = self._parts.log.bounds(self.old.requests)
        left = sum(end - max(first, offsets.get(p, 0)) for p, (first, end) in bounds.items())
        if left:
            raise Refused(
                f"{left} requests are not answered: let `millstream serve` answer them, stop it, "
                "and run it again"
            )
        ends = {p: end for p, (_, end) in self._parts.log.bounds(self.new.requests).items()}
        self._parts.groups.move(serving_group(self.new.prefix), self.new.requests, ends)

    def _create(self) -> dict[str, TopicSpec]:
        """The new topics, by their names without prefix."""
        check_not_moved(self._parts.log, self.old)
        names = [*self.old.names(), *self.new.names()]
        there = self._parts.admin.topics(names)
        missing = [name for name in self.old.names() if name not in there]
        if missing:
            raise Misconfigured(f"no topic {', '.join(missing)}. Run: millstream topics create")
        begun = there.get(self.new.user_events)
        if begun is not None and begun.partitions != self._partitions:
            raise Misconfigured(
                f"a copy to {begun.partitions} partitions has begun ({self.new.user_events}): "
                f"go on with --to {begun.partitions}, or delete the topics {self.new.prefix}* first"
            )
        plain = topic_specs(self.new.prefix, self._partitions, replay=False)
        specs = {
            (name := spec.name.removeprefix(self.new.prefix)): _like(
                spec, there[self.old.prefix + name]
            )
            for spec in plain
        }
        progress = TopicSpec(name=self._copied, partitions=1, cleanup="compact", retention_ms=-1)
        ensure_topics(self._parts.admin, [progress, *specs.values()])
        return specs

    def _done(self) -> dict[TopicPartition, Done]:
        """How far each old partition has been copied."""
        ids = {self.old.prefix + n: self._parts.log.topic_id(self.old.prefix + n) for n in NAMES}
        done = {}
        source = self._parts.open_source()
        try:
            for batch in until_end(self._parts.log, source, [self._copied]):
                for value in batch.values:
                    found = json.loads(value or b"")
                    if found["topic_id"] != ids.get(found["topic"]):
                        raise Misconfigured(
                            f"{self._copied} tells of another topic {found['topic']}, which was "
                            f"deleted: delete the topics of {self.new.prefix}* and start anew"
                        )
                    place = TopicPartition(found["topic"], found["partition"])
                    done[place] = Done(found["next_offset"], found["records"])
        finally:
            source.close()
        return done

    def _summary(self, name: str, records: int, done: Mapping[TopicPartition, Done]) -> CopiedTopic:
        topic = self.old.prefix + name
        bounds = self._parts.log.bounds(topic)
        places = {p: done.get(TopicPartition(topic, p), Done(0, 0)) for p in bounds}
        return CopiedTopic(
            name=topic,
            records=records,
            total=sum(found.records for found in places.values()),
            behind=sum(
                max(0, end - max(first, places[p].next_offset))
                for p, (first, end) in bounds.items()
            ),
        )


def _like(spec: TopicSpec, old: TopicState) -> TopicSpec:
    """The spec with the settings of the topic that it takes the place of."""
    known = old.settings
    return replace(
        spec,
        cleanup="compact" if "compact" in known.get("cleanup.policy", spec.cleanup) else "delete",
        retention_ms=int(known.get("retention.ms", spec.retention_ms)),
        segment_ms=int(known.get("segment.ms", spec.segment_ms)),
        max_record_bytes=int(known.get("max.message.bytes", spec.max_record_bytes)) + HEADER_BYTES,
    )
