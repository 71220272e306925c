"""Examples to the bytes of TFRecord files and back: processor time, no Kafka and no disk."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from features.assemble import ItemFeatures, UserFeatures
from features.catalog import CATALOG
from features.declare import Level
from features.example_bytes import LABELS, NUMBERS, TEXTS, encode, framed
from features.example_reader import ExampleFile, ExampleReader, ReadPolicy
from features.examples import LABELS as LABEL_COUNT
from features.examples import Examples, take
from tests.bench.figures import Figure, figure
from tests.bench.measure import own_cpu_s

LISTS, ITEMS = 256, 10  # as the label join writes them: so many lists at once
PASSES = 7
AIM = 100_000
PEER_EXAMPLES = 200  # TensorFlow's own classes are slow


def run() -> Iterator[Figure]:
    """The catalogue's examples, drawn."""
    lists, alone = drawn(LISTS, ITEMS), drawn(LISTS * ITEMS, 1)
    records = encode(lists, CATALOG)
    content = framed(records)
    size = round(len(content) / len(records))
    yield figure(
        f"TFRecord writing, lists of {ITEMS}",
        rate(len(lists), lambda: framed(encode(lists, CATALOG))),
        "examples/s a core",
        aim=AIM,
        peer=("tf.train.Example and TFRecordWriter", peer_rate(lists)),
        limits={"framing alone": rate(len(records), lambda: framed(records))},
        bytes_per_example=size,
    )
    yield figure(
        "TFRecord writing, every example of another user",
        rate(len(alone), lambda: framed(encode(alone, CATALOG))),
        "examples/s a core",
        bytes_per_example=size,
    )
    zipped = gzip.compress(content, 1)
    yield figure(
        "TFRecord compression, gzip 1",
        rate(len(records), lambda: gzip.compress(content, 1)),
        "examples/s a core",
        smaller=round(len(content) / len(zipped), 1),
    )
    yield reading(zipped, len(records))


def reading(zipped: bytes, records: int) -> Figure:
    """The reader over a few files of these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for n in range(4):
            path = Path(folder) / f"{n}.tfrecord.gz"
            path.write_bytes(zipped)
            files.append(ExampleFile(path=path, records=records, sha256=str(n)))

        def read() -> None:
            with closing(ExampleReader(files, ReadPolicy(shuffle=4_096, seed=1))) as reader:
                while reader.take(1_024):
                    pass

        return figure("TFRecord reading, shuffled", rate(4 * records, read), "examples/s a core")


def rate(n: int, work: Callable[[], object]) -> float:
    """Units a second of processor time: the best of some passes, since others share the caches."""
    best_s = float("inf")
    for _ in range(PASSES):
        start_s = own_cpu_s()
        work()
        best_s = min(best_s, own_cpu_s() - start_s)
    return n / best_s


def drawn(lists: int, items: int, seed: int = 0) -> Examples:
    """Examples of lists whose items share their user's features."""
    chance = np.random.default_rng(seed)
    n = lists * items

    def longs(level: Level, count: int) -> np.ndarray:
        columns = [
            chance.integers(0, 2**63 - 1 if "item" in f.name else 50, (count, f.length))
            for f in CATALOG.of(level, "int64")
        ]
        return np.concatenate([np.zeros((count, 0), np.int64), *columns], axis=1)

    def floats(level: Level, count: int) -> np.ndarray:
        return chance.random((count, CATALOG.width(level, "float32")), np.float32)

    shared = Examples(
        request_id=[f"{i:032x}" for i in range(lists)],
        user_id=[f"user-{i}" for i in range(lists)],
        item_id=[""] * lists,
        source=["served"] * lists,
        surface=["home"] * lists,
        fingerprint=CATALOG.fingerprint,
        position=np.zeros(lists, np.int64),
        event_time=1_700_000_000_000 + np.arange(lists),
        model_version=np.ones(lists, np.int64),
        events_partition=np.zeros(lists, np.int64),
        events_offset=np.arange(lists),
        item_hash=np.zeros(lists, np.uint64),
        users=UserFeatures(longs=longs(Level.USER, lists), floats=floats(Level.USER, lists)),
        items=ItemFeatures(longs=longs(Level.ITEM, lists), floats=floats(Level.ITEM, lists)),
        labels=np.zeros((lists, LABEL_COUNT), np.int64),
    )
    return replace(
        take(shared, np.repeat(np.arange(lists), items)),
        item_id=[f"item-{i % 997}" for i in range(n)],
        position=np.arange(n) % items,
        item_hash=chance.integers(0, 2**64 - 1, n, np.uint64),
        items=ItemFeatures(longs=longs(Level.ITEM, n), floats=floats(Level.ITEM, n)),
        labels=chance.integers(0, 2, (n, LABEL_COUNT)),
    )


def peer_rate(examples: Examples) -> float:
    """The same examples by TensorFlow's own classes."""
    import tensorflow as tf

    from features.tfrecord import parsed

    records = encode(take(examples, np.arange(PEER_EXAMPLES)), CATALOG)
    rows = parsed(records, CATALOG)

    def feature(name: str, value: np.ndarray) -> tf.train.Feature:
        values = np.atleast_1d(value)
        if name in TEXTS:
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if name in NUMBERS or name == LABELS or values.dtype == np.int64:
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def write() -> None:
        with tempfile.NamedTemporaryFile() as file, tf.io.TFRecordWriter(file.name) as writer:
            for i in range(PEER_EXAMPLES):
                made = {name: feature(name, values[i]) for name, values in rows.items()}
                example = tf.train.Example(features=tf.train.Features(feature=made))
                writer.write(example.SerializeToString())

    return rate(PEER_EXAMPLES, write)
