"""
Nearest items by inner product: every vector compared below a size, an inverted file above it.

The inverted file is an IVF index (Jégou et al., "Product quantization for nearest neighbor search",
TPAMI 2011, section 4) over plain vectors. How many of its lists a query probes is not guessed: it
is the least number that finds what comparing with every vector finds, as measured on queries of the
model that will be asked. The one importer of `faiss`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Read when the library is loaded: its threads would spin after each search, on processors that
# TensorFlow's need next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # noqa: TID251
import faiss

from inference.exclusion import hide, without
from inference.largest import largest

EXACT_BELOW: Final = 16_384  # vectors that are compared as fast as a user tower makes queries
RECALL_AT: Final = 50
# Of measured recall; .99 is promised, and the queries it is measured on are a sample.
RECALL_AIM: Final = 0.995
# Times the number of vectors to the power of 2/3: more than the usual root, since the vectors of a
# catalogue lie in thousands of small groups.
_LISTS = 0.7
_TRAIN_PER_LIST = 39  # below, the library warns
_TRAIN_ROUNDS = 5
_TAIL_SHARE = 0.05  # of the inverted file: then it is made anew
_BLOCK = 1 << 20  # scores that are held at once
_FINE = 20  # the number of lists to probe is found to a twentieth
_SEED = 1

Matrix = NDArray[np.float32]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """Of each query, best first; place -1 and score -inf pad."""

    at: Places  # [b, k]
    scores: Matrix  # [b, k]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked for: the nearest k of each query, but for what it leaves out."""

    queries: Matrix  # [b, d]
    k: int
    left_out: Places  # [b, e]; -1 pads


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inverted:
    """Vectors of places 0..n-1 in lists by their nearest centroid. Never changed once made."""

    index: Any
    probes: int
    recall: float  # of RECALL_AT, at so many probes

    def search(self, wanted: Wanted, bits: NDArray[np.uint8]) -> Nearest:
        selector = faiss.IDSelectorBitmap(bits)
        how = faiss.SearchParametersIVF(sel=selector, nprobe=self.probes)
        # What a query leaves out may all be among its best.
        wide = int((wanted.left_out >= 0).sum(axis=1).max(initial=0))
        scores, at = self.index.search(wanted.queries, wanted.k + wide, params=how)
        scores = np.where(at < 0, -np.inf, scores).astype(np.float32)
        at, scores = without(at, scores, wanted.left_out, wanted.k)
        return Nearest(at=at, scores=scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorIndex:
    """
    The vectors of places 0..size-1. Immutable: what changes is put into another one.

    What came or changed since the inverted file was made lies beside it and is compared in full.
    """

    size: int
    inverted: _Inverted | None
    replaced: Mask  # [n] of the inverted file: whose vector is among the others now
    tail_at: Places  # [t] ascending
    tail: Matrix  # [t, d]

    @property
    def recall(self) -> float:
        """Share of the best RECALL_AT that is found, as measured; 1 where all are compared."""
        return self.inverted.recall if self.inverted else 1.0

    @property
    def probes(self) -> int:
        """Lists that a query looks into; 0: it is compared with every vector."""
        return self.inverted.probes if self.inverted else 0

    def put(self, at: Places, vectors: Matrix) -> VectorIndex:
        """
        With these vectors at these places, ascending; new places follow on `size`.

        The inverted file stays as it is: see `due`.
        """
        replaced = self.replaced.copy()
        replaced[at[at < len(replaced)]] = True
        kept = np.isin(self.tail_at, at, invert=True)
        places = np.concatenate([self.tail_at[kept], at])
        order = np.argsort(places, kind="stable")
        return VectorIndex(
            size=max(self.size, int(at.max(initial=-1)) + 1),
            inverted=self.inverted,
            replaced=replaced,
            tail_at=places[order],
            tail=np.concatenate([self.tail[kept], vectors])[order],
        )

    @property
    def due(self) -> bool:
        """Whether so much lies beside the inverted file that it should be made anew."""
        most = max(EXACT_BELOW, _TAIL_SHARE * (self.size - len(self.tail_at)))
        return len(self.tail_at) > most

    def rebuilt(self, queries: Matrix) -> VectorIndex:
        """
        With all vectors in a new inverted file, its probes measured on `queries` [q, d].

        Takes seconds for a million vectors.
        """
        vectors = self._vectors()
        lists = int(_LISTS * len(vectors) ** (2 / 3))
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(vectors.shape[1]),
            vectors.shape[1],
            lists,
            faiss.METRIC_INNER_PRODUCT,
        )
        index.cp.niter, index.cp.seed = _TRAIN_ROUNDS, _SEED
        index.cp.max_points_per_centroid = _TRAIN_PER_LIST
        chance = np.random.default_rng(_SEED)
        most = min(len(vectors), _TRAIN_PER_LIST * lists)
        index.train(vectors[chance.choice(len(vectors), most, replace=False)])
        index.add(vectors)
        index.make_direct_map()  # so that vectors can be read back
        probes, recall = _probes(index, queries)
        return VectorIndex(
            size=self.size,
            inverted=_Inverted(index=index, probes=probes, recall=recall),
            replaced=np.zeros(self.size, np.bool_),
            tail_at=np.zeros(0, np.int64),
            tail=vectors[:0],
        )

    def vectors(self, at: Places) -> Matrix:
        """
        The vectors [m, d] of places [m], each below `size`; they may repeat.

        >>> index = no_vectors(1).put(np.arange(3), np.array([[5], [6], [7]], np.float32))
        >>> index.vectors(np.array([2, 0, 2])).ravel().tolist()
        [7.0, 5.0, 7.0]
        """
        if self.inverted is None:
            return self.tail[at]  # of all places, in order
        found = np.empty((len(at), self.tail.shape[1]), np.float32)
        beside = at >= len(self.replaced)
        beside[~beside] = self.replaced[at[~beside]]
        found[beside] = self.tail[np.searchsorted(self.tail_at, at[beside])]
        found[~beside] = self.inverted.index.reconstruct_batch(at[~beside])
        return found

    def tuned(self, queries: Matrix) -> VectorIndex:
        """The same, its probes measured anew on these queries."""
        if self.inverted is None:
            return self
        probes, recall = _probes(self.inverted.index, queries)
        return replace(self, inverted=replace(self.inverted, probes=probes, recall=recall))

    def among(self, allowed: Mask) -> Search:
        """
        Search among the allowed places alone, [size] bool.

        To be kept as long as neither changes: it takes a pass over all places.
        """
        ours = np.flatnonzero(allowed[self.tail_at])
        parts: list[Search] = []
        if self.inverted is not None:
            bits = np.packbits(allowed[: len(self.replaced)] & ~self.replaced, bitorder="little")
            inverted = self.inverted
            parts.append(lambda wanted: inverted.search(wanted, bits))
        if len(ours):
            # Beside each other, not below: a product with few queries takes less time.
            at, vectors = self.tail_at[ours], np.ascontiguousarray(self.tail[ours].T)
            columns = np.full(self.size, -1)
            columns[at] = np.arange(len(at))
            parts.append(lambda wanted: _compared(wanted, at, vectors, columns))
        return lambda wanted: _best([part(wanted) for part in parts], len(wanted.queries), wanted.k)

    def _vectors(self) -> Matrix:
        vectors = np.zeros((self.size, self.tail.shape[1]), np.float32)
        if self.inverted is not None:
            n = len(self.replaced)
            vectors[:n] = self.inverted.index.reconstruct_n(0, n)
        vectors[self.tail_at] = self.tail
        return vectors


Search = Callable[[Wanted], Nearest]


def no_vectors(width: int) -> VectorIndex:
    """
    An index of nothing yet.

    >>> index = no_vectors(2).put(np.arange(3), np.array([[1, 0], [0, 2], [3, 0]], np.float32))
    >>> queries, nothing = np.array([[1, 1]], np.float32), np.array([[-1]])
    >>> search = index.among(np.array([True, True, False]))
    >>> found = search(Wanted(queries=queries, k=3, left_out=nothing))
    >>> found.at.tolist(), found.scores.tolist()
    ([[1, 0, -1]], [[2.0, 1.0, -inf]])
    """
    return VectorIndex(
        size=0,
        inverted=None,
        replaced=np.zeros(0, np.bool_),
        tail_at=np.zeros(0, np.int64),
        tail=np.zeros((0, width), np.float32),
    )


def use_threads(threads: int) -> None:
    """Let a search that this thread begins use so many."""
    faiss.omp_set_num_threads(threads)


def _compared(wanted: Wanted, at: Places, vectors: Matrix, columns: Places) -> Nearest:
    """
    Of every vector. faiss's own comparison takes three times as long at these sizes.

    Args:
        at: [t] places of the vectors.
        vectors: [d, t]
        columns: [size] of each place among them; -1: it is not.
    """
    rows, k = max(1, _BLOCK // len(at)), min(wanted.k, len(at))
    parts = []
    for first in range(0, len(wanted.queries), rows):
        scores = wanted.queries[first : first + rows] @ vectors
        hide(scores, wanted.left_out[first : first + rows], columns)
        parts.append(largest(scores, k))
    found, best = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Nearest(at=np.where(np.isneginf(best), -1, at[found]), scores=best)


def _best(parts: list[Nearest], rows: int, k: int) -> Nearest:
    """The best k of all parts, [rows, k]."""
    pad = Nearest(at=np.full((rows, k), -1), scores=np.full((rows, k), -np.inf, np.float32))
    if len(parts) == 1 and parts[0].at.shape[1] == k:
        return parts[0]
    parts = [*parts, pad]
    at = np.concatenate([part.at for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Nearest(
        at=np.take_along_axis(at, order, axis=1), scores=np.take_along_axis(scores, order, axis=1)
    )


def _probes(index: Any, queries: Matrix) -> tuple[int, float]:
    """The least number of lists to probe that reaches the aim, and the recall it has."""
    k = min(RECALL_AT, index.ntotal)

    def found(probes: int) -> Places:
        how = faiss.SearchParametersIVF(nprobe=probes)
        return np.asarray(index.search(queries, k, params=how)[1])

    every = found(index.nlist)
    few, enough, recall = 0, index.nlist, 1.0  # the most that miss the aim, the least that do not
    tried = 1
    while enough - few > max(1, few // _FINE):
        reached = _recall(every, found(tried))
        if reached >= RECALL_AIM:
            enough, recall = tried, reached
        else:
            few = tried
        tried = min(2 * few, (few + enough) // 2) if few else (few + enough) // 2
    return enough, recall


def _recall(every: Places, some: Places) -> float:
    """
    Share of `every` that is among `some`, row by row.

    >>> _recall(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 9]]))
    0.75
    """
    found = (every[:, :, None] == some[:, None, :]).any(axis=2)
    return float(found.mean()) if found.size else 1.0
