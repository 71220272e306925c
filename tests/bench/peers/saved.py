"""The SavedModel as every peer that serves it calls it: rows of JSON in, rows of JSON out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

FOLDER, WAIT_MS = "PEER_MODEL", "PEER_WAIT_MS"  # what a peer is told by its environment
MAX_BATCH = 64
K = "k"  # one number for a whole call


def told(name: str) -> str:
    """What the benchmark tells."""
    return os.environ[name]  # noqa: TID251 - a program of its own, without our settings


class Saved:
    """Its `serving_default`, on one thread as ours."""

    def __init__(self) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self._tf = tf
        self._loaded = tf.saved_model.load(told(FOLDER))
        self._call = self._loaded.signatures["serving_default"]
        specs = self._call.structured_input_signature[1]
        self._types = {name: spec.dtype.as_numpy_dtype for name, spec in specs.items()}

    def answered(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Items and scores of each row; all rows of a call have the same k."""
        given = {
            name: np.asarray(rows[0][K] if name == K else [row[name] for row in rows], kind)
            for name, kind in self._types.items()
        }
        found = self._call(**{n: self._tf.convert_to_tensor(a) for n, a in given.items()})
        plain = {name: tensor.numpy().tolist() for name, tensor in found.items()}
        return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
