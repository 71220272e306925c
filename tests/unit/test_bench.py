"""The harness of `make bench`: what it writes, what it prints, what makes it fail."""

from __future__ import annotations

import io
import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from features.hashing import hash_ids
from schemas.events import EventType
from tests.bench import batching, delivery, figures, measure, network, plots, same_job
from tests.bench.figures import Figure, figure
from tests.bench.harness import Outcome, Part, measured, print_table, write
from tests.bench.load import Answers, BadAnswer, over_http, post
from tests.bench.peers import row
from tests.bench.peers.task import Task
from tests.bench.serving import Took
from tests.bench.shop import MIX, Shop

MET = figure("fast", 200.0, "events/s", aim=100, peer=("peer", 50.0), limits={"a": 400.0})
MISSED = figure("slow", 20.0, "events/s", aim=100, limits={"a": 30.0, "b": 25.0}, profile=["f"])
WAIT = figure("wait", 60.0, "ms", aim=50, smaller_is_better=True)
TOLD = figure("told", 5.0, "events/s")


def outcome(*parts: Part[None], output: io.StringIO | None = None) -> Outcome:
    return measured(parts, None, Console(file=output or io.StringIO(), width=200), "a machine")


def giving(*found: Figure) -> Part[None]:
    return Part(name="part", run=lambda world: iter(found))


def breaking() -> Part[None]:
    def run(world: None) -> Iterator[Figure]:
        yield MET
        raise RuntimeError("the broker is gone")

    return Part(name="broken", run=run)


def test_a_figure_carries_exactly_the_fields_that_readers_expect() -> None:
    (found,) = json.loads(figures.to_json([MET]))
    assert tuple(found) == (
        *("name", "value", "unit", "aim", "ok", "peer", "peer_value", "ratio", "limit", "detail"),
    )
    assert (found["ok"], found["ratio"], found["limit"]) == (True, 4.0, 400.0)


def test_the_nearest_limit_is_the_limit() -> None:
    assert MISSED.limit == 25.0
    assert MISSED.detail["limits"] == {"a": 30.0, "b": 25.0}


def test_a_smaller_latency_meets_the_aim_and_a_larger_one_does_not() -> None:
    assert WAIT.ok is False
    assert figure("wait", 40.0, "ms", aim=50, smaller_is_better=True).ok is True


def test_a_missed_aim_does_not_fail_the_command() -> None:
    found = outcome(giving(MISSED, WAIT))
    assert [one.ok for one in found.figures] == [False, False]
    assert found.exit_code == 0


def test_a_broken_part_fails_the_command_and_the_others_are_measured() -> None:
    output = io.StringIO()
    found = outcome(breaking(), giving(TOLD), output=output)
    assert [one.name for one in found.figures] == ["fast", "broken", "told"]
    assert "the broker is gone" in found.figures[1].detail["error"]
    assert "the broker is gone" in output.getvalue()
    assert found.exit_code == 1


def test_the_table_marks_what_missed_its_aim() -> None:
    output = io.StringIO()
    print_table("pipeline", [MET, MISSED], Console(file=output, width=200))
    fast, slow = (line for line in output.getvalue().splitlines() if "events/s" in line)
    assert "yes" in fast
    assert "peer: 50" in fast
    assert "NO" in slow
    assert "80%" in slow


def test_what_is_written_is_what_was_found(tmp_path: Path) -> None:
    found = outcome(giving(MET, MISSED, WAIT))
    write(tmp_path, "pipeline", found, {"wait": ([1.0, 2.0, 300.0], 50)}, ["about"])
    stored = json.loads((tmp_path / "pipeline.json").read_text())
    assert [one["name"] for one in stored] == ["fast", "slow", "wait"]
    assert all(one["detail"]["machine"] == "a machine" for one in stored)
    text = (tmp_path / "README.md").read_text()
    assert "| slow | 20 | events/s | 100 | NO | 25 | 80% |  |" in text
    for picture in ("pipeline-throughput.png", "pipeline-latency.png"):
        assert f"]({picture})" in text
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "x"}, "has fields"),
        ({**dict.fromkeys(figures.FIELDS), "name": "x", "value": 1, "aim": 2}, "but ok None"),
    ],
)
def test_a_malformed_figure_is_refused(wrong: dict[str, object], said: str) -> None:
    assert any(said in problem for problem in figures.problems([wrong]))


def test_two_figures_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="fast is there twice"):
        figures.to_json([MET, MET])


def test_the_shop_is_the_same_for_the_same_seed_and_mixed_as_it_says() -> None:
    first, again = (list(Shop().events(4_000, 10**12)) for _ in range(2))
    assert first == again
    times = [e.event_time for e in first]
    assert times == sorted(times)
    shown = sum(e.event_type is EventType.IMPRESSION for e in first) / len(first)
    assert shown == pytest.approx(MIX[EventType.IMPRESSION], abs=0.05)
    assert 0 < len(first) - len({e.event_id for e in first}) < 100
    assert Counter(e.user_id for e in first).most_common(1)[0][0] == Shop().user(0)


def test_a_wait_ends_at_its_deadline() -> None:
    with pytest.raises(measure.TooSlow, match="the end was not so within 0"):
        measure.wait_until(lambda: False, timeout_s=0.0, what="the end", every_s=0.0)


def test_a_curve_is_drawn_for_each_size_that_was_measured(tmp_path: Path) -> None:
    plots.curves(tmp_path, "features", {"batch": {64: 1e4, 65_536: 2e5}, "resident": {0: 9.0}})
    assert {path.name for path in tmp_path.iterdir()} == {
        "features-batch.png",
        "features-resident.png",
    }


def test_a_peers_row_keeps_the_last_items_and_a_day_of_counts() -> None:
    found = row.empty()
    for hour in range(30):
        for at in range(3):
            event = {
                "event_type": "VIEW",
                "item_id": f"{hour}-{at}",
                "event_time": hour * 3_600_000,
            }
            row.fold(found, event)
    row.fold(found, {"event_type": "IMPRESSION", "item_id": "x", "event_time": 29 * 3_600_000})
    assert found["items"] == [f"{h}-{at}" for h in range(30) for at in range(3)][-50:]
    assert list(found["hours"]) == [str(hour) for hour in range(6, 30)]
    assert found["hours"]["29"] == {"VIEW": 3, "IMPRESSION": 1}


def task(directory: Path) -> Task:
    return Task(
        bootstrap_servers="nowhere:1",
        topic="t",
        redis_url="redis://nowhere:1/0",
        events=1,
        directory=str(directory),
        state="own",
        partitions=4,
    )


def test_a_peer_that_cannot_be_installed_is_said_so_and_breaks_nothing(tmp_path: Path) -> None:
    found = same_job.ran("the peers cannot be installed: no network", "quix", task(tmp_path))
    assert found.per_s is None
    assert found.error == "the peers cannot be installed: no network"


@pytest.mark.parametrize(
    ("lock", "peers"),
    [
        (same_job.LOCK, {"quixstreams", "bytewax", "faust-streaming"}),
        (network.LOCK, {"litserve", "bentoml", "tensorflow-cpu"}),
    ],
)
def test_a_lock_of_peers_pins_and_hashes_everything_and_names_no_registry(
    lock: Path, peers: set[str]
) -> None:
    text = lock.read_text()
    packages = [entry for entry in text.split("\n") if entry and not entry.startswith(" ")]
    assert peers <= {p.split("==")[0] for p in packages}
    assert all("==" in package and package.endswith("\\") for package in packages)
    assert "://" not in text


def test_a_peer_with_another_answer_is_found_out() -> None:
    hour = {"100": {"CLICK": 2}, "101": {"CLICK": 1, "VIEW": 1}}
    held = json.dumps({"items": ["a", "b"], "hours": hour}).encode()
    ours = same_job.Answer(
        items=tuple(hash_ids(["a", "b"]).tolist()),
        counts={int(EventType.CLICK): 3, int(EventType.VIEW): 1},
    )
    nobody = same_job.Answer(items=(), counts={})
    assert same_job.unlike({"u": ours, "v": nobody}, [held, None]) == ""
    assert same_job.unlike({"u": ours}, [held.replace(b"2", b"1")]).startswith("another answer")
    assert same_job.unlike({"u": ours}, [held.replace(b'"b"', b'"c"')]).startswith("another")
    assert same_job.unlike({"v": nobody}, [held]).startswith("another answer for v")


def test_a_days_batches_serve_everybody_once_and_in_time() -> None:
    calls_s = {1: 0.002, 8: 0.003, 64: 0.008}
    times = batching.bursty(1_000, np.random.default_rng(1))[:3_000]
    ours = batching.Ours(tuple(calls_s))
    outcomes = [
        batching.day(ours, times, calls_s, ours.cost.observe),
        batching.day(batching.Fixed(32, 0.010), times, calls_s, lambda *_: None),
    ]
    for one in outcomes:
        assert 0.002 < one.p50_s < one.p99_s < 1
        assert 0 < one.busy < 1
    assert ours.cost.predict(64) == pytest.approx(0.0086, rel=0.3)


@pytest.mark.parametrize("edge", [0.05, 0.12, 0.4321, 0.9, 2.0])
def test_the_highest_load_that_is_borne_is_found_between_those_of_the_grid(edge: float) -> None:
    def at(load: float) -> batching.Outcome:
        return batching.Outcome(1000 * load, 0, 0.05 if load <= edge else 0.2, 1)

    found = batching.borne([at(load) for load in batching.LOADS], at)
    assert found == pytest.approx(1000 * min(edge, 1.0), abs=10)


def queued(bears: float):
    """A queue that is served at one rate, with half a second of trouble in between."""

    def steady(rate: float, for_s: float) -> list[Took]:
        behind = max(0.0, rate / bears - 1)
        sent = np.arange(int(rate * for_s)) / rate
        latency = 0.01 + behind * sent + 0.5 * ((sent > 1) & (sent < 1.5))
        return [Took(s, s + late, 1, None) for s, late in zip(sent, latency, strict=True)]

    return steady


@pytest.mark.parametrize("bears", [900.0, 510.0, 2_000.0])
def test_peak_load_is_the_highest_rate_at_which_waiting_does_not_grow(bears: float) -> None:
    assert delivery.peak_load(queued(bears), 1000.0) == pytest.approx(min(bears, 1000), abs=50)


def test_a_server_that_keeps_up_with_nothing_is_said_so() -> None:
    with pytest.raises(measure.TooSlow, match="at 31 requests/s"):
        delivery.peak_load(queued(10.0), 1000.0)


def test_batchers_are_drawn(tmp_path: Path) -> None:
    points = {100: 5.0, 200: 9.0}
    plots.curves(tmp_path, "x", {"batcher-bursty-ours": points, "batcher-poisson-fixed": points})
    assert [path.name for path in tmp_path.iterdir()] == ["x-batchers.png"]


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nserver: x\r\n\r\nhello"


def test_an_answer_is_cut_out_wherever_its_packets_end() -> None:
    for at in range(1, len(OK)):
        cut = Answers()
        assert cut.taken(OK[:at]) + cut.taken(OK[at:]) == [b"hello"]


def test_answers_that_come_together_are_cut_apart() -> None:
    cut = Answers()
    assert cut.taken(OK + OK + OK[:-2]) == [b"hello", b"hello"]
    assert cut.taken(OK[-2:]) == [b"hello"]


def test_an_empty_body_is_an_answer() -> None:
    assert Answers().taken(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") == [b""]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OK.replace(b"200 OK", b"503 Busy"), "503 Busy.*hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "without Content-Length"),
    ],
)
def test_an_answer_that_is_not_good_is_raised(answer: bytes, said: str) -> None:
    with pytest.raises(BadAnswer, match=said):
        Answers().taken(answer)


def test_each_call_of_a_load_gets_its_own_answer() -> None:
    def handle(connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while stream.readline():
                while (line := stream.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                body = stream.read(size)
                stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
                stream.flush()

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(lambda: handle(listening.accept()[0]))
        calls = [post("/", str(n).encode()) for n in range(20)]
        load = over_http(listening.getsockname()[1], calls, 3)
    assert load.answers == [str(n).encode() for n in range(20)]
    assert min(load.latencies_s) > 0


def test_a_server_with_other_answers_is_found_out() -> None:
    ours = [{"items": [1, 2], "scores": [2.0, 1.0]}]
    bare, named = json.dumps(ours).encode(), json.dumps({"predictions": ours}).encode()
    assert network.unlike(ours, [bare]) == network.unlike(ours, [named]) == ""
    assert "differ from ours by up to 0.5" in network.unlike(ours, [bare.replace(b"1.0", b"1.5")])
    assert "only 50.0% of the items" in network.unlike(ours, [bare.replace(b"[1, 2]", b"[1, 3]")])
    assert "scores of shape" in network.unlike(ours, [b"[]"])
