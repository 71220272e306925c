"""Titles of items, kept beside the item table for those who show answers to people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.events import Item

MAX_TITLE = 300  # characters kept of a title


class Titles:
    """
    The newest title of each item of the catalogue. Threads may put while others read.

    >>> titles = Titles()
    >>> titles.put([Item(item_id="a", title="A tale")])
    >>> titles.of(["a", "b"])
    {'a': 'A tale'}
    """

    def __init__(self) -> None:
        self._titles: dict[str, str] = {}

    def put(self, items: Sequence[Item]) -> None:
        """Take in what the catalogue says."""
        self._titles.update({item.item_id: item.title[:MAX_TITLE] for item in items})

    def of(self, item_ids: Iterable[str]) -> dict[str, str]:
        """The titles that are known."""
        return {i: self._titles[i] for i in item_ids if i in self._titles}
