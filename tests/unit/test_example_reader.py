"""The reader: every record once an epoch, in an order that can be taken up at any position."""

from __future__ import annotations

import gzip
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from features import archive
from features.archive import Manifest
from features.compaction import TidyPolicy, tidy
from features.declare import Feature, FeatureSet, Level, declared
from features.disk import Place, place
from features.example_bytes import framed
from features.example_reader import (
    ExampleFile,
    ExampleReader,
    ReaderState,
    ReadPolicy,
    lacking,
    shares,
    turns,
)
from ingest.clock import ManualClock
from schemas.errors import ArchiveUnavailable, Refused

COUNTS = (7, 1, 12, 3, 5)
POLICIES = [
    ReadPolicy(readers=1),
    ReadPolicy(readers=2, block=3),
    ReadPolicy(readers=3, block=2, shuffle=5, seed=1, epochs=2),
    ReadPolicy(readers=2, block=4, shuffle=100, seed=2, epochs=2, shard=1, shards=2),
]


def write(root: Place, counts: tuple[int, ...] = COUNTS) -> list[ExampleFile]:
    """Files of an archive, with records that are told apart."""
    first = Manifest(
        kind="examples",
        partition=0,
        sequence=0,
        generation=0,
        position={"recommendations": 0},
        log={},
        fingerprint="f",
    )
    writer = archive.claim(root, first, ".tfrecord.gz")
    at = 0
    for count in counts:
        records = [f"record {at + i}".encode() * (at + i + 1) for i in range(count)]
        writer.append(framed(records), count, 1_700_000_000_000)
        at += count
        writer.commit({"recommendations": at})
    return described(root)


def described(root: Place) -> list[ExampleFile]:
    manifest = archive.newest(root, "examples", 0)
    assert manifest is not None
    return [
        ExampleFile(path=root / "examples" / f.path, records=f.records, sha256=f.sha256)
        for f in manifest.files
    ]


def everything(files: list[ExampleFile], policy: ReadPolicy, n: int = 4) -> list[bytes]:
    with closing(ExampleReader(files, policy)) as reader:
        found: list[bytes] = []
        while part := reader.take(n):
            found += part
        return found


@pytest.fixture
def files(tmp_path: Path) -> list[ExampleFile]:
    return write(tmp_path)


def number(record: bytes) -> int:
    return int(record[7:].split(b"record")[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_taken_up_at_every_position_the_rest_is_the_same(
    files: list[ExampleFile], policy: ReadPolicy
) -> None:
    whole = everything(files, policy)
    with (
        closing(ExampleReader(files, policy)) as walking,
        closing(ExampleReader(files, policy)) as again,
    ):
        for position in range(len(whole) + 1):
            state = ReaderState.from_json(walking.get_state().to_json())
            again.set_state(state)
            assert again.take(3) == whole[position : position + 3], "soon"
            again.set_state(state)
            assert again.take(1_000) == whole[position:], "to the end"
            assert again.take(1) == []
            assert walking.take(1) == whole[position : position + 1]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_record_comes_once_an_epoch(files: list[ExampleFile], policy: ReadPolicy) -> None:
    found: Counter[bytes] = Counter()
    for shard in range(policy.shards):
        found += Counter(everything(files, replace(policy, shard=shard)))
    assert sorted(map(number, found)) == list(range(sum(COUNTS)))
    assert set(found.values()) == {policy.epochs}


def test_how_much_is_asked_for_changes_nothing(files: list[ExampleFile]) -> None:
    for policy in POLICIES:
        assert everything(files, policy, 1) == everything(files, policy, 1_000)


def test_without_shuffle_one_reader_keeps_the_order_of_the_archive(
    files: list[ExampleFile],
) -> None:
    found = list(map(number, everything(files, ReadPolicy(readers=1))))
    assert found == list(range(sum(COUNTS)))


def test_an_epoch_and_a_seed_have_an_order_of_their_own(files: list[ExampleFile]) -> None:
    policy = ReadPolicy(shuffle=8, seed=3, epochs=2)
    found = everything(files, policy)
    n = sum(COUNTS)
    assert found[:n] != found[n:]
    assert found[:n] == everything(files, replace(policy, epochs=1))
    assert found[:n] != everything(files, replace(policy, epochs=1, seed=4))


def test_without_end_it_goes_on(files: list[ExampleFile]) -> None:
    with closing(ExampleReader(files, ReadPolicy(epochs=None))) as reader:
        assert len(reader.take(5 * sum(COUNTS) + 1)) == 5 * sum(COUNTS) + 1
        assert reader.get_state().epoch == 5
    with closing(ExampleReader([], ReadPolicy(epochs=None))) as reader:
        assert reader.take(1) == []


def test_a_state_of_other_files_or_another_order_is_refused(files: list[ExampleFile]) -> None:
    with closing(ExampleReader(files, POLICIES[2])) as reader:
        state = reader.get_state()
    for others, policy in ((files[1:], POLICIES[2]), (files, replace(POLICIES[2], seed=9))):
        with (
            closing(ExampleReader(others, policy)) as reader,
            pytest.raises(Refused, match="state"),
        ):
            reader.set_state(state)


def test_files_that_are_done_are_not_opened_again(files: list[ExampleFile]) -> None:
    policy = ReadPolicy(readers=1)
    with closing(ExampleReader(files, policy)) as reader:
        reader.take(9)
        state = reader.get_state()
    for file in files[:2]:
        file.path.unlink()  # type: ignore[union-attr]
    with closing(ExampleReader(files, policy)) as reader:
        reader.set_state(state)
        assert list(map(number, reader.take(100))) == list(range(9, sum(COUNTS)))


def test_shares_differ_by_no_more_than_the_largest_file(files: list[ExampleFile]) -> None:
    sizes = [sum(f.records for f in share) for share in shares(files, 2)]
    assert sum(sizes) == sum(COUNTS)
    assert max(sizes) - min(sizes) <= max(COUNTS)
    assert [len(share) for share in shares(files[:1], 3)] == [1, 0, 0]


def test_empty_files_have_no_turn() -> None:
    assert list(turns([0, 2, 0, 1], 1, 5)) == [(1, 0, 2), (3, 0, 1)]
    assert list(turns([], 3, 5)) == []


def test_an_object_store_and_merged_files_give_the_same_records() -> None:
    root = place(f"memory://{uuid.uuid4().hex}")
    write(root)
    policy = ReadPolicy(readers=1)
    before = everything(described(root), policy)
    tidy(root, "examples", 0, TidyPolicy(min_files=2), ManualClock(0))
    assert len(described(root)) == 1
    assert everything(described(root), policy) == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "fewer", "more", "torn"])
def test_a_damaged_file_is_named(files: list[ExampleFile], damage: str) -> None:
    path = files[2].path
    assert isinstance(path, Path)
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(content[:-20])
        case "altered":
            inner = bytearray(gzip.decompress(content))
            inner[30] ^= 1
            path.write_bytes(gzip.compress(bytes(inner)))
        case "fewer" | "more":
            n = 1 if damage == "fewer" else 30
            path.write_bytes(gzip.compress(framed([b"x"] * n)))
        case "torn":
            path.write_bytes(gzip.compress(gzip.decompress(content)[:-1]))
    with pytest.raises(ArchiveUnavailable, match=path.name):
        everything(files, ReadPolicy())


def test_what_older_examples_lack_is_told_by_their_declaration(tmp_path: Path) -> None:
    def feature(name: str, **changes: object) -> Feature:
        given = {"name": name, "level": Level.USER, "dtype": "int64", "compute": None, "doc": ""}
        return Feature(**(given | changes))  # type: ignore[arg-type]

    old = FeatureSet((feature("a"),))
    new = FeatureSet((feature("a"), feature("b", defaultable=True)))
    other = FeatureSet((feature("a"), feature("c")))
    first = Manifest(
        kind="examples",
        partition=0,
        sequence=0,
        generation=0,
        position={},
        log={},
        fingerprint=old.fingerprint,
    )
    assert lacking(tmp_path, new.fingerprint, new) == ()
    with pytest.raises(Refused, match=f"{old.fingerprint}, expected {new.fingerprint}"):
        lacking(tmp_path, old.fingerprint, new)
    archive.claim(tmp_path, first, ".tfrecord.gz", declaration=declared(old))
    assert lacking(tmp_path, old.fingerprint, new) == ("b",)
    with pytest.raises(Refused, match="c is missing and not defaultable"):
        lacking(tmp_path, old.fingerprint, other)


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"shard": 2, "shards": 2}, {"readers": 0}, {"block": 0}, {"shuffle": -1}):
        with pytest.raises(ValueError, match="got"):
            ReadPolicy(**wrong)
