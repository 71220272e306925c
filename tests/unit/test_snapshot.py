"""What a training reads: whole files, of feature sets that differ in nothing but defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import archive
from features.archive import Manifest
from features.assemble import ItemFeatures
from features.declare import Feature, FeatureSet, Level, declared
from features.disk import Place, place
from features.example_bytes import encode, framed
from features.examples import Examples
from retrain.snapshot import Replay, Span, defaulted, file_problems, read, take_snapshot
from schemas.errors import Refused
from tests.unit.test_example_bytes import FEATURES, examples, nothing


def feature(name: str, **changes: object) -> Feature:
    given = {"name": name, "level": Level.ITEM, "dtype": "float32", "compute": nothing, "doc": ""}
    return Feature(**(given | changes))  # type: ignore[arg-type]


ALL = Span(from_ms=0, until_ms=2**62, most=100)
WIDER = FeatureSet((*FEATURES.features, feature("trend", default=7.0, defaultable=True)))
OTHER = FeatureSet((*FEATURES.features, feature("trend")))


def widened(found: Examples) -> Examples:
    floats = np.concatenate([found.items.floats, np.ones((len(found), 1), np.float32)], axis=1)
    items = ItemFeatures(longs=found.items.longs, floats=floats)
    return replace(found, fingerprint=WIDER.fingerprint, items=items)


def write(root: Place, found: Examples, features: FeatureSet) -> None:
    first = Manifest(
        kind="examples",
        partition=0,
        sequence=0,
        generation=0,
        position={"recommendations": 0},
        log={},
        fingerprint=features.fingerprint,
    )
    writer = archive.claim(root, first, ".tfrecord.gz", declaration=declared(features))
    writer.append(framed(encode(found, features)), len(found), 1_700_000_000_000)
    at = writer.manifest.position["recommendations"] + len(found)
    writer.commit({"recommendations": at})


def begun() -> Examples:
    """Examples from before the feature was declared; the first five chose nothing."""
    found = replace(examples(20), event_time=1_700_000_000_000 + np.arange(20))
    found.labels[:5] = 0
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An archive that was begun before a feature was declared."""
    write(tmp_path, begun(), FEATURES)
    write(tmp_path, widened(examples(10, seed=1)), WIDER)
    return tmp_path


def test_examples_older_than_a_feature_are_counted(root: Path) -> None:
    snapshot = take_snapshot(root)
    assert snapshot.records == 30
    assert snapshot.fingerprints == tuple(sorted({FEATURES.fingerprint, WIDER.fingerprint}))
    assert list(file_problems(snapshot, WIDER)) == []
    assert defaulted(snapshot, WIDER) == {"trend": 20}


def test_examples_of_a_set_that_differs_in_more_are_a_problem(root: Path) -> None:
    problems = list(file_problems(take_snapshot(root), OTHER))
    assert any("trend is missing and not defaultable" in problem for problem in problems)
    (root / "declarations" / f"{FEATURES.fingerprint}.json").unlink()
    [problem] = file_problems(take_snapshot(root), WIDER)
    assert f"{FEATURES.fingerprint}, expected {WIDER.fingerprint}" in problem


def test_damaged_files_are_problems_by_name(root: Path) -> None:
    snapshot = take_snapshot(root)
    first, second = archive.files(root, "examples")
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    missing, truncated = file_problems(snapshot, WIDER)
    assert missing == f"{first}: missing"
    assert truncated.startswith(f"{second}: truncated")
    with pytest.raises(Refused, match="the archive cannot be read"):
        read(snapshot, WIDER, ALL)


@pytest.mark.tf
def test_old_and_new_examples_are_read_together_from_folder_and_store(root: Path) -> None:
    store = place("memory://snapshot-old-and-new")
    write(store, begun(), FEATURES)
    write(store, widened(examples(10, seed=1)), WIDER)
    for at in (root, store):
        found = read(take_snapshot(at), WIDER, ALL)
        assert len(found) == 25, "only what was chosen"
        trend = found.items.floats[:, -1]
        assert set(trend.tolist()) == {1.0, 7.0}
        assert found.fingerprint == WIDER.fingerprint


@pytest.mark.tf
def test_after_a_change_all_that_is_new_is_read_and_a_sample_of_what_is_old(root: Path) -> None:
    every = read(take_snapshot(root), WIDER, ALL)
    middle = int(np.median(every.event_time))
    replay = Replay(recent_from_ms=middle, most=0)
    recent = read(take_snapshot(root), WIDER, ALL, replay)
    assert len(recent) == (every.event_time >= middle).sum() < len(every)
    some = [
        read(take_snapshot(root), WIDER, ALL, Replay(recent_from_ms=2**62, most=15, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert 0 < len(some[0]) < len(every)
    assert some[0].request_id == some[1].request_id, "the same seed draws the same"
    assert some[0].request_id != some[2].request_id
