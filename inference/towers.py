"""
Retrieval outside of the graph: the model's query tower against an index of the catalogue as it
stands.

A graph knows the items of its training. This index holds what the item table holds: an item that
came since is found by its content, one that is not available is no candidate at all. It is made by
the model's own item tower when the model is loaded, and follows the table from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import structlog
from numpy.typing import NDArray

from features import rows
from features.assemble import ItemsShown, UserFeatures, packed_users
from features.declare import Array, Feature, FeatureSet, ItemContext, Level, UserContext
from inference.calls import TOLERANCE
from inference.model import Model, ModelRef, Scored, ServedModel
from inference.samples import ITEM, ITEMS, QUERY, RANK, USER_FLOATS, USER_LONGS, Call
from inference.tensors import CANDIDATES, Signature
from inference.vectors import Mask, Matrix, Search, VectorIndex, Wanted, no_vectors, use_threads
from ingest.clock import Clock
from ingest.metrics import Metrics
from schemas.errors import MillstreamError, ModelFault, Rejected

if TYPE_CHECKING:
    from features.items import ItemTable

log = structlog.get_logger(__name__)

FOLLOW_S = 1.0  # how soon a new item can be found
_PART = 512  # items in one call of the tower: a size that models are warmed for
_REST = 10  # times what following took, before the next look: a tenth of a thread at most
_RECENT = 512  # queries that the index is tuned on


def has_towers(model: Model) -> TypeGuard[ServedModel]:
    """Whether a model gives its towers by themselves."""
    return isinstance(model, ServedModel) and {QUERY, ITEMS} <= model.signatures.keys()


def ranks_by_product(model: ServedModel, features: FeatureSet, calls: Iterable[Call]) -> bool:
    """
    Whether `rank` is the product of the towers, as sampled calls of it tell.

    It is not where it looks at more of a candidate than the item tower does: then other scores come
    out, or they change with what the tower does not take.
    """
    sampled = [call.inputs for call in calls if call.signature == RANK]
    try:
        return bool(sampled) and all(_is_product(model, features, inputs) for inputs in sampled)
    except (MillstreamError, KeyError, ValueError):
        return False  # the model fails, or its samples do not fit: whoever warms it tells which


def _is_product(model: ServedModel, features: FeatureSet, inputs: Mapping[str, Array]) -> bool:
    candidates = inputs[CANDIDATES]
    rows = len(candidates)
    users = packed_users(features, inputs)
    packed: dict[str, Array] = {USER_LONGS: users.longs, USER_FLOATS: users.floats}
    own = {name: inputs[name] for name in model.signatures[ITEMS].inputs if name != ITEM}
    queries = model.predict(QUERY, packed, rows)["vector"]
    vectors = model.predict(ITEMS, own | {ITEM: candidates.ravel()}, candidates.size)["vectors"]
    product = np.einsum("bd,bcd->bc", queries, vectors.reshape(*candidates.shape, -1))
    others = {f.name: inputs[f.name] + 1 for f in features.of(Level.ITEM) if f.name not in own}
    for asked in (inputs, {**inputs, **others}):
        scores = model.predict(RANK, asked, rows)["scores"]
        near = np.abs(scores - product) <= TOLERANCE * (1 + np.abs(product))
        if not near[candidates != 0].all():
            return False
    return True


class TowerModel:
    """
    Implements `inference.model.Model` and `TensorModel` on a model with both towers.

    `retrieve` takes one call of the query tower and a search. `rank` takes the same call and the
    candidates' vectors of the index, where that is what the model's own `rank` computes; the rest
    is the model's own.
    """

    def __init__(
        self,
        model: ServedModel,
        features: FeatureSet,
        items: ItemTable,
        sample: UserFeatures,
        metrics: Metrics,
        *,
        products: bool = False,
        threads: int = 0,
    ) -> None:
        """
        Args:
            model: closed with this one.
            items: followed.
            sample: users that the index is tuned on until others have asked.
            products: whether the model's `rank` is its towers' product, see `ranks_by_product`.
            threads: of a search; 0: as many as there are processors.

        Raises:
            ModelFault: the query tower failed.
        """
        self._model = model
        self._items = items
        self._metrics = metrics
        self._products = products
        self._threads = threads
        self._inputs = _ItemInputs(features, items, tuple(model.signatures[ITEMS].inputs))
        self._digests = np.zeros(0, np.uint64)  # [size] of what each vector was made from
        self._looked_at: Array | None = None
        self._searching: tuple[VectorIndex, Mask, Search] | None = None
        self._width = 0  # of a vector, once known
        queries = self._queries(sample)
        self._width = queries.shape[1]
        self._index = no_vectors(self._width)
        self._recent = list(queries[:_RECENT])  # for tuning
        self._tuned_on = 0
        self._follower: tuple[threading.Thread, threading.Event] | None = None

    @property
    def ref(self) -> ModelRef:
        return self._model.ref

    @property
    def index(self) -> VectorIndex:
        """As it stands."""
        return self._index

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        queries = self._queries(users)
        if len(self._recent) < _RECENT:
            self._recent += list(queries[: _RECENT - len(self._recent)])
        left_out = self._items.index(exclude.ravel()).reshape(exclude.shape)
        if self._threads:
            use_threads(self._threads)
        found = self._search()(Wanted(queries=queries, k=k, left_out=left_out))
        items = np.where(found.at < 0, np.uint64(0), self._items.hashes[found.at])
        return Scored(items=items, scores=found.scores)

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        at = self._places(candidates) if self._products else None
        if at is None:
            return self._model.rank(users, candidates, items)
        vectors = self._index.vectors(at.ravel()).reshape(*at.shape, self._width)
        scores = (vectors @ self._queries(users)[:, :, None])[:, :, 0]
        return np.where(candidates == 0, np.float32(-np.inf), scores)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._model.signatures

    def predict(self, signature: str, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        return self._model.predict(signature, inputs, rows)

    def follow(self, clock: Clock) -> None:
        """Keep the index as the table is, in a thread, until `close`."""
        stop = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(stop, clock), name=f"index-{self.ref.version}", daemon=True
        )
        self._follower = (thread, stop)
        thread.start()

    def catch_up(self) -> int:
        """
        Put what is new or has other content than before into the index; how many items that was.

        One thread at a time.

        Raises:
            ModelFault: the item tower failed.
        """
        categories = self._items.categories  # exchanged as a whole when an item's content changes
        if categories.base is self._looked_at and len(categories) == len(self._digests):
            return self._tune()
        digests = self._inputs.digests(len(categories))
        known = len(self._digests)
        changed = np.flatnonzero(digests[:known] != self._digests)
        places = np.concatenate([changed, np.arange(known, len(digests))])
        if len(places):
            self._put(places)
        self._digests, self._looked_at = digests, categories.base
        self._tell()
        return len(places)

    def _tune(self) -> int:
        """Once so many have asked that the sample can be done without."""
        if self._tuned_on < _RECENT <= len(self._recent):  # several threads append
            self._index = self._index.tuned(self._sample())
            self._tell()
        return 0

    def _tell(self) -> None:
        version = str(self.ref.version)
        self._metrics.gauge("serve.index_items", self._index.size, version=version)
        self._metrics.gauge("serve.index_probes", self._index.probes, version=version)
        self._metrics.gauge("serve.index_recall", self._index.recall, version=version)

    def close(self) -> None:
        if self._follower is not None:
            thread, stop = self._follower
            stop.set()
            thread.join()
            self._follower = None
        self._model.close()

    def _run(self, stop: threading.Event, clock: Clock) -> None:
        wait_s = FOLLOW_S
        while not stop.wait(wait_s):
            start_s = clock.monotonic_s()
            try:
                count = self.catch_up()
            except MillstreamError as error:  # what is in the index is served on
                log.error(  # noqa: TRY400 - the message is the point
                    "index.not_current", version=self.ref.version, error=str(error)
                )
            else:
                if count:
                    log.info("index.current", version=self.ref.version, items=count)
            wait_s = max(FOLLOW_S, _REST * (clock.monotonic_s() - start_s))

    def _queries(self, users: UserFeatures) -> Matrix:
        inputs: dict[str, Array] = {USER_LONGS: users.longs, USER_FLOATS: users.floats}
        return self._called(QUERY, "vector", inputs, len(users))

    def _called(
        self, signature: str, output: str, inputs: Mapping[str, Array], count: int
    ) -> Matrix:
        try:
            found = self._model.predict(signature, inputs, count).get(output)
        except Rejected as rejected:  # not a caller's values, but ours
            raise ModelFault(f"{signature}: {rejected}") from rejected
        if found is None or found.shape != (count, self._width or found.shape[-1]):
            given = "nothing" if found is None else f"shape {list(found.shape)}"
            raise ModelFault(f"{signature}: {output} of {count} rows is {given}")
        return np.ascontiguousarray(found, np.float32)

    def _places(self, candidates: NDArray[np.uint64]) -> NDArray[np.int64] | None:
        """[b, c] places in the index, 0 where there is no candidate; None: one is not there yet."""
        at = self._items.index(candidates.ravel()).reshape(candidates.shape)
        at[candidates == 0] = 0
        known = self._index.size > 0 and ((at >= 0) & (at < self._index.size)).all()
        return at if known else None

    def _search(self) -> Search:
        """Among what is available now."""
        index, available = self._index, self._items.available
        if self._searching is not None:
            known, as_of, search = self._searching
            if known is index and as_of.base is available.base:
                return search
        search = index.among(available[: index.size])
        self._searching = (index, available, search)
        return search

    def _put(self, places: NDArray[np.int64]) -> None:
        parts = [places[at : at + _PART] for at in range(0, len(places), _PART)]
        vectors = np.concatenate([self._vectors(part) for part in parts])
        index = self._index.put(places, vectors)
        self._index = index.rebuilt(self._sample()) if index.due else index

    def _vectors(self, places: NDArray[np.int64]) -> Matrix:
        return self._called(ITEMS, "vectors", self._inputs.of(places), len(places))

    def _sample(self) -> Matrix:
        recent = list(self._recent)  # others append
        self._tuned_on = len(recent)
        return np.stack(recent)


class _ItemInputs:
    """What the item tower takes, from the table: the item alone, whoever looks at it."""

    def __init__(self, features: FeatureSet, items: ItemTable, names: Sequence[str]) -> None:
        self._features = [f for f in features.of(Level.ITEM) if f.name in names and f.name != ITEM]
        self._items = items
        nobody, nothing = np.zeros(1, np.int64), np.zeros(1, np.uint64)
        self._users = UserContext(
            rows=rows.empty(1), now_ms=nobody, surface=nothing, device=nothing, country=nothing
        )

    def of(self, places: NDArray[np.int64]) -> dict[str, Array]:
        """By feature, [m] or [m, length], and the items' hashes."""
        context = self._context(places)
        found = {f.name: _computed(f, context) for f in self._features}
        return {**found, ITEM: context.hashes.view(np.int64)}

    def digests(self, count: int) -> NDArray[np.uint64]:
        """[count] a hash of what `of` gives for each of the first places."""
        found = np.zeros(count, np.uint64)
        context = self._context(np.arange(count))
        for feature in self._features:
            values = np.ascontiguousarray(_computed(feature, context)).reshape(count, -1)
            for column in values.T:
                found = (found ^ column.view(np.uint64)) * _PRIME
                found ^= found >> np.uint64(29)
        return found

    def _context(self, places: NDArray[np.int64]) -> ItemContext:
        return ItemContext(
            users=self._users,
            request=np.zeros(len(places), np.int64),
            hashes=self._items.hashes[places],
            items=self._items,
            index=places,
        )


_PRIME = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth's multiplicative hash


def _computed(feature: Feature, context: ItemContext) -> Array:
    return np.asarray(feature.compute(context), feature.dtype)
