"""Files of a data set's folder, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import Misconfigured


def find(folder: Path, name: str, how: str) -> Path:
    """
    A file by its name, or that with `.gz`.

    Raises:
        Misconfigured: it is not there; the message says `how` to get it.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise Misconfigured(f"{folder} has neither {name} nor {name}.gz: put {how} there")


def read_csv(folder: Path, name: str, how: str) -> pl.DataFrame:
    """A csv file, every column as text."""
    path = find(folder, name, how)
    try:
        return pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise Misconfigured(f"{path} is not csv: {error}") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """
    The objects of a file of JSON lines.

    Raises:
        Misconfigured: a line is none; it is named.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
            except ValueError as error:
                raise Misconfigured(f"{path}, line {number}, is not JSON: {error}") from error
            yield found
