"""
Avro container files as columns, at three times the speed of record by record.

polars reads one large uncompressed block at twice the speed of the many small compressed ones that
such a file has: so the blocks are put together first, and only the fields that are asked for built.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import fastavro
import polars as pl

from schemas.errors import Reason, Rejected
from schemas.plan import container_header, long_bytes

_SYNC = b"millstream-sync!"


@dataclass(frozen=True, slots=True)
class _Whole:
    """What a container file holds, as one uncompressed block."""

    schema: str
    records: int
    block: bytes


def container_columns(stream: BinaryIO, columns: Sequence[str]) -> pl.DataFrame:
    """
    Some fields of the records of an Avro container file.

    Raises:
        Rejected: the bytes are none, end too early, or lack a field.
    """
    found = _whole(stream)
    header, records = container_header(found.schema), long_bytes(found.records)
    plain = b"".join((header, _SYNC, records, long_bytes(len(found.block)), found.block, _SYNC))
    try:
        frame = pl.read_avro(io.BytesIO(plain), columns=list(columns))
    except (Exception, pl.exceptions.PanicException) as error:
        # Whatever the bytes provoke; PanicException is a BaseException.
        raise Rejected(Reason.UNDECODABLE, f"not these records: {error}") from error
    if len(frame) != found.records:
        raise Rejected(Reason.UNDECODABLE, f"{len(frame)} of {found.records} records were read")
    return frame


def _whole(stream: BinaryIO) -> _Whole:
    try:
        reader = fastavro.block_reader(stream)
        blocks = [(block.num_records, block.bytes_.getvalue()) for block in reader]
        schema = reader.metadata["avro.schema"]
    except Exception as error:
        # fastavro raises whatever the bytes provoke, as in `schemas.codec`.
        raise Rejected(Reason.UNDECODABLE, f"not a whole Avro container: {error}") from error
    return _Whole(schema, sum(n for n, _ in blocks), b"".join(data for _, data in blocks))
