"""
Retrieval from large catalogues: the query tower and a search, at a measured recall.

What the towers cost is the real network's; the vectors are synthetic, since no catalogue of a
million items can be trained on here: items lie around centres, as those of trained towers do, and
a user looks for what is near a few items of the history.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from numpy.typing import NDArray

from features.assemble import ItemsShown, UserFeatures
from features.catalog import CATALOG
from features.declare import Array
from features.hashing import hash_ids
from features.items import ItemTable
from inference.model import ModelRef, Scored, ServedModel
from inference.samples import ITEM, ITEMS, QUERY
from inference.tensors import Signature
from ingest.metrics import MemoryMetrics
from retrain.recipe import NetworkPolicy
from schemas.events import Item
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, seconds
from tests.bench.serving import QUIET
from tests.bench.world import World
from tests.untrained import export_untrained, some_users

AIMS = {100_000: 5_000.0, 1_000_000: 1_000.0}  # requests/s by size of the catalogue
RECALL_AIM, AT = 0.99, 50
BATCH = 256
WIDTH = 64
PER_CENTRE, SPREAD, NEAR = 250, 0.7, 0.05
LIMIT_S = 4.0
ASKED = 512  # queries that the recall is measured on; the index was tuned on others
ALONE = 200  # calls
VOCABULARY = 3_400  # of the network, whose tower is timed


class Clustered:
    """A model whose vectors are given, at the price of the real towers."""

    def __init__(
        self, real: ServedModel, vectors: NDArray[np.float32], hashes: NDArray[np.uint64]
    ) -> None:
        self._real, self._vectors = real, vectors
        self._place = np.argsort(hashes)
        self._sorted = hashes[self._place]
        self._chance = np.random.default_rng(2)
        self.aside: NDArray[np.float32] | None = None  # queries to answer with

    @property
    def ref(self) -> ModelRef:
        return self._real.ref

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._real.signatures

    def predict(self, signature: str, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        if signature == ITEMS:
            at = np.searchsorted(self._sorted, inputs[ITEM].view(np.uint64))
            return {"vectors": self._vectors[self._place[at]]}
        self._real.predict(QUERY, inputs, rows)
        return {"vector": self.queries(rows) if self.aside is None else self.aside[:rows]}

    def queries(self, count: int) -> NDArray[np.float32]:
        """Near the middle of three items."""
        some = self._chance.integers(0, len(self._vectors), (count, 3))
        found = self._vectors[some].mean(axis=1)
        found += NEAR * self._chance.normal(size=found.shape)
        return np.ascontiguousarray(found, np.float32)

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        return self._real.retrieve(users, exclude, k)

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        return self._real.rank(users, candidates, items)

    def close(self) -> None:
        self._real.close()


def run(world: World) -> Iterator[Figure]:
    """Both sizes, with the time it takes to make the index."""
    os.environ.setdefault(*QUIET)  # noqa: TID251 - TensorFlow reads it when it is imported
    with TemporaryDirectory(dir=world.directory) as folder:
        real = _real(Path(folder) / "1")
        yield _alone(real)
        for size, aim in AIMS.items():
            yield from _sized(real, size, aim)
        real.close()


def _alone(real: ServedModel) -> Figure:
    """One user's request: the towers and the index, and the graph with its inputs by name."""
    from inference.towers import TowerModel

    names = [f"i{at}" for at in range(VOCABULARY)]
    table = ItemTable(CATALOG.fingerprint)
    table.put_items([Item(item_id=name, title=name) for name in names])
    users, seen = some_users(hash_ids(names), 1)
    towers = TowerModel(real, CATALOG, table, users, MemoryMetrics(), threads=1)
    towers.catch_up()
    ways = (lambda: towers.retrieve(users, seen, AT), lambda: real.retrieve(users, seen, AT))
    taken_ms = []
    for way in ways:
        way()
        taken_ms.append(1000 * float(np.median([seconds(way) for _ in range(ALONE)])))
    return figure(
        f"a lone request for the best {AT} of {VOCABULARY:,}, packed inputs and an index",
        taken_ms[0],
        "ms",
        smaller_is_better=True,
        peer=("inputs by name, retrieval in the graph", taken_ms[1]),
    )


def _sized(real: ServedModel, size: int, aim: float) -> Iterator[Figure]:
    from inference.towers import TowerModel

    names = [f"item-{at}" for at in range(size)]
    hashes = hash_ids(names)
    table = ItemTable(CATALOG.fingerprint)
    for at in range(0, size, 50_000):
        table.put_items([Item(item_id=n, title=n) for n in names[at : at + 50_000]])
    vectors = _vectors(size)
    model = Clustered(real, vectors, hashes)
    users, _ = some_users(hashes, BATCH)
    before = psutil.Process().memory_info().rss
    start_s = CLOCK.monotonic_s()
    processors = len(os.sched_getaffinity(0))
    towers = TowerModel(model, CATALOG, table, users, MemoryMetrics(), threads=processors)
    towers.catch_up()
    made_s = CLOCK.monotonic_s() - start_s
    grown = psutil.Process().memory_info().rss - before
    seen = np.random.default_rng(4).choice(hashes, (BATCH, 50))
    recall = _recall(towers.retrieve, model, vectors, hashes)
    per_s = _per_s(lambda: towers.retrieve(users, seen, AT))
    tower_s = _per_s(lambda: real.predict(QUERY, _packed(users), BATCH))
    exact = _exact_per_s(vectors, model.queries(64))
    yield figure(
        f"retrieval from {size:,} items",
        per_s,
        "requests/s",
        aim=aim,
        limits={"the query tower alone": tower_s},
        peer=("the tower, and every vector compared", 1 / (1 / tower_s + 1 / exact)),
        lists_probed=towers.index.probes,
        made_in_s=round(made_s, 1),
        mib=round(grown / 2**20),
        batch=BATCH,
        note=f"best {AT}, 50 seen items left out a request; one process, all processors",
    )
    yield figure(
        f"recall of the best {AT} of {size:,} items",
        recall,
        "of exact",
        aim=RECALL_AIM,
        queries=ASKED,
        as_tuned=round(towers.index.recall, 4),
    )


def _real(folder: Path) -> ServedModel:
    from inference.savedmodel import SavedModel

    export_untrained(
        folder, hash_ids([f"i{at}" for at in range(VOCABULARY)]), policy=NetworkPolicy()
    )
    ref = ModelRef(name="bench", version=1, fingerprint=CATALOG.fingerprint)
    return SavedModel(folder, ref, CATALOG, batch_sizes=(1, BATCH))


def _vectors(size: int) -> NDArray[np.float32]:
    chance = np.random.default_rng(1)
    centres = chance.normal(size=(size // PER_CENTRE, WIDTH + 1)).astype(np.float32)
    found = centres[chance.integers(0, len(centres), size)]
    found += SPREAD * chance.standard_normal(found.shape, np.float32)
    return found / np.float32(np.sqrt(WIDTH))


def _packed(users: UserFeatures) -> dict[str, Array]:
    return {"user_longs": users.longs, "user_floats": users.floats}


def _recall(
    retrieve: Callable[..., Scored],
    model: Clustered,
    vectors: NDArray[np.float32],
    hashes: NDArray[np.uint64],
) -> float:
    found = []
    for _ in range(ASKED // BATCH):
        model.aside = model.queries(BATCH)
        users, _ = some_users(hashes, BATCH)
        got = retrieve(users, np.zeros((BATCH, 0), np.uint64), AT).items
        scores = model.aside @ vectors.T
        best = hashes[np.argpartition(-scores, AT, axis=1)[:, :AT]]
        found += [np.isin(a, b).mean() for a, b in zip(best, got, strict=True)]
    model.aside = None
    return float(np.mean(found))


def _per_s(call: Callable[[], object]) -> float:
    """Requests/s of a call for BATCH requests, by the median."""
    call()
    calls, end_s = [], CLOCK.monotonic_s() + LIMIT_S
    while CLOCK.monotonic_s() < end_s:
        calls.append(seconds(call))
    return BATCH / float(np.median(calls))


def _exact_per_s(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> float:
    """Queries/s of the same search without an index."""
    from inference.vectors import Wanted, no_vectors

    index = no_vectors(vectors.shape[1]).put(np.arange(len(vectors)), vectors)
    search = index.among(np.ones(len(vectors), np.bool_))
    wanted = Wanted(queries=queries, k=AT, left_out=np.full((len(queries), 1), -1))
    return len(queries) / min(seconds(lambda: search(wanted)) for _ in range(2))
