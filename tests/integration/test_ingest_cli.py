"""The commands of ingest against a real broker and registry."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from ingest import replay_cli
from ingest.clock import SystemClock
from ingest.dead_letter import DeadLetters
from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource
from ingest.log import Outgoing, TopicPartition
from ingest.replay import Folded
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.errors import Reason, Rejected
from schemas.events import DeadLetter, EventType, UserEvent
from schemas.registry import RemoteRegistry

pytestmark = pytest.mark.kafka


class Line:
    """`millstream` with a prefix of its own, and what is on its topics."""

    def __init__(self, servers: str, registry_url: str, prefix: str, capsys: Any) -> None:
        self.servers, self.registry_url, self.prefix = servers, registry_url, prefix
        self.options = [
            "--bootstrap-servers", servers, "--registry-url", registry_url, "--prefix", prefix,
        ]  # fmt: skip
        self._capsys = capsys
        self.topics = Topics(prefix)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        code = run([*self.options, *arguments])
        return code, self._capsys.readouterr().out

    def values(self, topic: str) -> list[bytes | None]:
        log, source = KafkaLog(self.servers), KafkaSource(self.servers)
        found: list[bytes | None] = []
        for partition, (start, end) in log.bounds(topic).items():
            source.assign({TopicPartition(topic, partition): start})
            at = start
            while at < end:
                batch = source.poll(10_000, 10)
                assert batch is not None
                found += batch.values
                at = batch.next_offset
        source.close()
        return found

    def events(self) -> Counter[str]:
        reader = ColumnReader(RemoteRegistry(self.registry_url, 10), UserEvent)
        decoded = reader.read(self.values(self.topics.user_events))
        return Counter(EventType(t).name for t in decoded.frame["event_type"])


@pytest.fixture
def line(
    kafka: Any,
    registry: Any,
    unique_name: Callable[[str], str],
    eventually: Callable[..., None],
    capsys: Any,
) -> Line:
    made = Line(kafka.bootstrap_servers, registry.url, unique_name("cli") + "-", capsys)
    assert made("topics", "create", "--partitions", "2")[0] == 0
    # A new partition's leader takes a moment to learn that it is one.
    eventually(lambda: made("topics", "describe")[0] == 0)
    return made


@pytest.fixture
def films(tmp_path: Path) -> Path:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n7,Heat (1995),Action\n")
    ratings = "".join(f"{i % 5},7,3.0,{i}\n" for i in range(200))
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{ratings}")
    return tmp_path


def test_topics_are_created_once_and_described(line: Line) -> None:
    code, out = line("topics", "create", "--partitions", "2", "--json")
    assert (code, json.loads(out)["created"]) == (0, [])
    code, out = line("topics", "describe", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} == set(line.topics.names())
    assert line("topics", "create", "--partitions", "3")[0] == 2


def test_a_replay_sends_every_row_and_prints_the_counts(line: Line, films: Path) -> None:
    code, out = line("replay", "movielens", str(films), "--until", "0.5", "--json", "--no-wait")
    sent = json.loads(out)["sent"]
    assert (code, sent["rows"], sent["items"], sent["events"]) == (0, 100, 1, {"RATING": 100})
    assert line.events() == {"RATING": 100}
    code, out = line(
        "replay", "movielens", str(films), "--from", "0.5", "--limit", "10", "--no-wait"
    )
    assert code == 0
    assert "10 rows" in out
    assert line.events() == {"RATING": 110}


class Watch:
    """A features job that has folded everything at once."""

    def begin(self) -> None:
        pass

    def wait(self, last_offsets: Mapping[int, int], timeout_s: float) -> Folded:
        return Folded(accepted={"RATING": len(last_offsets)}, duplicates=3, late=0, rejected=0)


def test_a_replay_waits_for_the_features_job_and_tells_what_it_folded(
    line: Line, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_cli, "_watches", [lambda settings: Watch()])
    _, out = line("replay", "movielens", str(films), "--json")
    assert json.loads(out)["folded"]["accepted"] == {"RATING": 2}
    assert "3 duplicates" in line("replay", "movielens", str(films))[1]
    assert "folded" not in line("replay", "movielens", str(films), "--no-wait")[1]


def test_a_wrong_replay_says_what_to_do(line: Line, films: Path, tmp_path: Path) -> None:
    assert line("replay", "kuairand", str(tmp_path))[0] == 2
    assert line("replay", "netflix")[0] == 2
    assert line("replay", "movielens", str(films), "--speed", "fast")[0] == 2
    assert line("replay", "movielens", str(films), "--from", "0.9", "--until", "0.1")[0] == 2


def test_dead_letters_are_listed_and_shown(line: Line) -> None:
    producer = KafkaProducer(line.servers)
    producer.send(Outgoing(topic=line.topics.user_events, key=b"u", value=b"junk", partition=1))
    producer.flush(10)
    source = KafkaSource(line.servers)
    source.assign({TopicPartition(line.topics.user_events, 1): 0})
    batch = source.poll(10, 10)
    assert batch is not None
    codec = Codec(RemoteRegistry(line.registry_url, 10), DeadLetter, line.topics.dead_letters)
    letters = DeadLetters(producer, codec, line.topics.dead_letters, SystemClock())
    letters.add(batch, 0, Rejected(Reason.NOT_FRAMED, "no frame"))
    letters.flush()
    producer.close()
    source.close()
    code, out = line("dead-letters", "list", "--json")
    (one,) = json.loads(out)
    assert (code, one["reason"], one["value"]) == (0, "not-framed", "anVuaw==")
    assert json.loads(line("dead-letters", "list", "--reason", "poison", "--json")[1]) == []
    origin = f"{one['topic']}/{one['partition']}/{one['offset']}"
    assert json.loads(line("dead-letters", "show", origin)[1]) == one
    assert line("dead-letters", "show", "nowhere/0/0")[0] == 1


def test_shoppers_come_for_a_while_and_leave(line: Line) -> None:
    code, out = line(
        "simulate", "--shoppers", "50", "--minutes", "0.05", "--sessions-per-hour", "3600",
        "--json",
    )  # fmt: skip
    tally = json.loads(out)
    assert code == 0
    assert tally["requests"] == len(line.values(line.topics.requests)) > 20
    sent = sum(tally["events"].values()) + tally["duplicates"] + tally["malformed"]
    assert len(line.values(line.topics.user_events)) == sent
    assert len(line.values(line.topics.item_updates)) == 300
    assert line("simulate", "--outage", "soon")[0] == 2
    assert line("simulate", "--day-s", "0")[0] == 2


def test_a_simulation_that_is_told_to_stop_stops(line: Line) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *line.options, "simulate", "--minutes", "60"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),  # noqa: TID251
    )
    assert process.stderr is not None
    seen = ""
    while "ready: simulated shoppers" not in seen:
        seen = process.stderr.readline()
        assert seen
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "requests" in out


def shared(name: str) -> Path:
    for parent in Path(__file__).parents:
        if (found := parent / "shared/data" / name).is_dir():
            return found
    pytest.skip(f"real data is not here: put {name} into ../shared/data")


def test_otto_and_ranklens_are_on_the_log_with_their_items(line: Line) -> None:
    code, out = line("replay", "otto", str(shared("otto")), "--json", "--no-wait")
    sent = json.loads(out)["sent"]
    assert (code, sent["rows"], sent["items"]) == (0, 862, 510)
    otto = {"CLICK": 800, "CART": 52, "PURCHASE": 10}
    assert line.events() == sent["events"] == otto
    rankings = ("replay", "ranklens", str(shared("ranklens")), "--limit", "100")
    code, out = line(*rankings, "--json", "--no-wait")
    sent = json.loads(out)["sent"]
    assert (code, sent["rows"], sent["items"]) == (0, 100, 2_512)
    assert sent["events"]["IMPRESSION"] + 24 * sent["events"]["CLICK"] == 24 * 100
    assert line.events() == Counter(otto) + Counter(sent["events"])
    assert len(line.values(line.topics.item_updates)) == 510 + 2_512


def test_kuairand_is_on_the_log_with_exactly_its_counts(line: Line) -> None:
    folder = shared("kuairand")
    code, out = line("replay", "kuairand", str(folder), "--json", "--no-wait")
    sent = json.loads(out)["sent"]
    assert (code, sent["rows"], sent["repeated_rows"], sent["items"]) == (0, 94_784, 2_750, 7_583)
    del sent["distinct"]["PROFILE"]
    assert sent["distinct"] == {
        "IMPRESSION": 92_034, "CLICK": 41_118, "LIKE": 1_603, "SHARE": 76, "DISLIKE": 63,
        "VIEW": 28_946,
    }  # fmt: skip
    assert line.events() == sent["events"]
