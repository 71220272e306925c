"""Data sets by name: one module reads each kind, `dataset` says what all of them become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from ingest.datasets.dataset import Chunk, Dataset, hash_id
from ingest.datasets.kuairand import read_kuairand
from ingest.datasets.movielens import read_movielens
from ingest.datasets.otto import read_otto
from ingest.datasets.ranklens import read_ranklens
from ingest.datasets.recbole import fetch_recbole, read_movielens_100k, read_recbole
from schemas.errors import Misconfigured

__all__ = ["Chunk", "Dataset", "hash_id", "names", "open_dataset"]

PACKAGED: Final = "movielens-100k"  # comes by itself; all others are folders


class _Kind(NamedTuple):
    """How a folder is read, and what has to be in it."""

    read: Callable[[Path], Dataset]
    what: str


_KINDS: Final[dict[str, _Kind]] = {
    "movielens": _Kind(read_movielens, "the folder with ratings.csv and movies.csv"),
    "kuairand": _Kind(read_kuairand, "the folder with KuaiRand-Pure's csv files"),
    "ranklens": _Kind(read_ranklens, "the folder with Ranklens' events.jsonl"),
    "otto": _Kind(read_otto, "the folder with OTTO's train.jsonl"),
    "recbole": _Kind(read_recbole, "a folder of RecBole's atomic files, NAME.inter and its kin"),
}


def names() -> tuple[str, ...]:
    """
    The data sets that can be opened.

    >>> names()
    ('movielens-100k', 'movielens', 'kuairand', 'ranklens', 'otto', 'recbole')
    """
    return (PACKAGED, *_KINDS)


def open_dataset(name: str, path: Path | None, data_dir: Path) -> Dataset:
    """
    A data set by name: `movielens-100k`, downloaded once into `data_dir`, or a kind of folder.

    Raises:
        Misconfigured: no such data set, or a file is missing; the message says how to get it.
    """
    if name == PACKAGED:
        return read_movielens_100k(path or fetch_recbole(data_dir))
    if name not in _KINDS:
        raise Misconfigured(f"unknown data set {name!r}: one of {', '.join(names())}")
    kind = _KINDS[name]
    if path is None:
        raise Misconfigured(f"{name} needs a path: {kind.what}")
    if not path.is_dir():
        raise Misconfigured(f"{path} is not a folder: give {kind.what}")
    return kind.read(path)
