"""What item-updates says of some items, and since when it has said just that."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from features.hashing import hash_id
from ingest.log import Log, Source
from ingest.reading import until_end
from ingest.topics import Topics
from schemas.codec import Decoder
from schemas.errors import Rejected
from schemas.events import Item
from schemas.registry import Registry


class Catalogue:
    """The newest entries of some items. What an entry said before is not on a compacted topic."""

    def __init__(self, wanted: NDArray[np.uint64]) -> None:
        """`wanted` are hashes of item ids."""
        self._wanted = frozenset(wanted.tolist())
        self._versions: dict[int, list[tuple[int, Item]]] = defaultdict(list)

    def read(self, log: Log, source: Source, topics: Topics, registry: Registry) -> None:
        """Take in the topic, from its start to its present end."""
        decoder = Decoder(registry, Item)
        for batch in until_end(log, source, [topics.item_updates]):
            for at, key in enumerate(batch.keys):
                name = (key or b"").decode(errors="replace")
                if (hashed := hash_id(name)) not in self._wanted:
                    continue
                value = batch.values[at]
                try:  # one that was taken from the catalogue is known by its id alone
                    item = (
                        Item(item_id=name, title=name, available=False)
                        if value is None
                        else decoder.decode(value)
                    )
                except Rejected:
                    continue  # as servers do
                self._versions[hashed].append((int(batch.timestamps_ms[at]), item))

    def items(self) -> list[Item]:
        """The newest entry of each item."""
        return [versions[-1][1] for versions in self._versions.values()]

    def settled_ms(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """[n] since when each item's entry has been as it is; 0: it has none."""
        since = {hashed: _settled_ms(versions) for hashed, versions in self._versions.items()}
        return np.fromiter((since.get(h, 0) for h in hashes.tolist()), np.int64, len(hashes))


def _settled_ms(versions: list[tuple[int, Item]]) -> int:
    """
    The time of the first of the last versions that are all the same.

    >>> one, other = Item(item_id="a", title="A"), Item(item_id="a", title="B")
    >>> _settled_ms([(1, one), (2, other), (3, other)])
    2
    """
    since_ms, last = versions[-1]
    for at_ms, item in reversed(versions):
        if item != last:
            break
        since_ms = at_ms
    return since_ms
