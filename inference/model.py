"""The model's seam: what a served version can do, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemsShown, UserFeatures
from features.declare import Array
from inference.tensors import Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Which model: name, version (grows, never reused) and the feature set it was trained on."""

    name: str
    version: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The best items of each request, best first. Hash 0 pads where fewer than k were found."""

    items: NDArray[np.uint64]  # [batch, k] item hashes
    scores: NDArray[np.float32]  # [batch, k]

    def __post_init__(self) -> None:
        if self.items.shape != self.scores.shape:
            raise ValueError(f"{self.items.shape} items for {self.scores.shape} scores")


class Model(Protocol):
    """
    A loaded, verified, warmed version. Implementations must pass `tests.contracts.model`.
    """

    @property
    def ref(self) -> ModelRef:
        """Name, version and fingerprint."""

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        """
        Top k of the catalogue for each user.

        Args:
            users: features of `batch` users.
            exclude: [batch, e] item hashes never to return; 0 pads.
            k: at most the size of the catalogue less e.

        Raises:
            ModelFault: the model failed, or returned NaN, or another number of scores.
        """

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        """
        Score of each candidate, [batch, c] float32; -inf where the candidate is 0.

        Args:
            users: features of `batch` users.
            candidates: [batch, c] item hashes; 0 pads.
            items: features of the batch * c candidates, row-major; read only if they are needed.
        """

    def close(self) -> None:
        """Give the memory back. Idempotent."""


@runtime_checkable
class TensorModel(Protocol):
    """A model whose own signatures can be called with tensors."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What it takes and gives, by the name of the signature. Holds after `close` too."""

    def predict(self, signature: str, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """
        The outputs of one call, each with `rows` rows.

        Args:
            inputs: checked by `inference.tensors.checked`.

        Raises:
            Rejected: the model does not take these values.
            ModelFault: the model failed, gave NaN, or is closed.
        """


@runtime_checkable
class ServedModel(Model, TensorModel, Protocol):
    """A model of both kinds, as loaders make them."""
