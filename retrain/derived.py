"""
From a published version to one that LiteRT serves too: the same files, and the towers converted.

The gate judged the SavedModel. What is converted is let through by its closeness to that: the
scores of the sampled calls, and which items they retrieve.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from features.declare import Array, FeatureSet
from inference.expected import EXCLUDE
from inference.litert import CATALOGUE, GOLDEN_FILE, MODEL_FILE, LiteRtModel
from inference.loading import trained_on
from inference.model import ModelRef, TensorModel
from inference.registry import MANIFEST, FolderRegistry, ModelFacts, read_manifest
from inference.samples import GOLDEN, RANK, RETRIEVE, WARMUP, Call, read_calls, write_calls
from inference.savedmodel import SavedModel
from inference.signature import Keyring, load_key
from inference.tensors import K, Signature
from ingest.clock import Clock
from retrain.litert import converted
from retrain.publish import JOB_KEY
from schemas.errors import Refused, Rejected
from schemas.events import Attribute, Measure

FIRST_K: Final = 1_024  # of the search for how many items the graph knows; doubles
MAX_ITEMS: Final = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How close what was converted is to what it was made of, over the sampled calls."""

    gap: float  # largest |converted - original| / (1 + |original|) of a retrieved or ranked score
    same_items: float  # share of the originally retrieved items that are retrieved

    def problems(self, limits: Parity) -> list[str]:
        """
        Where it is not within the limits.

        >>> Parity(gap=0.5, same_items=1.0).problems(EXACT)
        ['scores differ by up to 0.5, at most 0.001 is let through']
        """
        told = []
        if not self.gap <= limits.gap:
            told.append(
                f"scores differ by up to {self.gap:.3g}, at most {limits.gap:g} is let through"
            )
        if self.same_items < limits.same_items:
            told.append(
                f"{self.same_items:.1%} of the retrieved items are the same, at least "
                f"{limits.same_items:.0%} must be"
            )
        return told


EXACT: Final = Parity(gap=1e-3, same_items=0.98)  # equal scores may change places
# An int8 weight is off by up to 1/254 of the largest of its row; a tower adds up a few such layers.
# Networks of 16 and 64 wide, trained and not, differed by less than 0.05 and kept at least 95 %.
QUANTISED: Final = Parity(gap=0.1, same_items=0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What was published."""

    version: int
    parent: int
    size_bytes: int  # of the LiteRT file
    parity: Parity


def derive(
    registry: FolderRegistry,
    name: str,
    version: int,
    *,
    quantise: bool,
    keys_dir: Path,
    clock: Clock,
) -> Derived:
    """
    Publish a version that LiteRT can serve, made of `version`, which is its parent.

    Raises:
        Misconfigured: the key that signs cannot be read.
        Refused: the version does not verify, has no towers, is such a version already, cannot be
            converted, or is not close enough to what it was before.
        ModelFault: what was converted does not answer.
    """
    key = load_key(keys_dir)
    folder = registry.fetch(name, version, Keyring.load(keys_dir))
    try:
        facts = read_manifest(folder).facts
        if (folder / MODEL_FILE).exists():
            raise Refused(f"{name} version {version} has a {MODEL_FILE} already: export its parent")
        features = trained_on(facts)
        ref = ModelRef(name=name, version=version, fingerprint=facts.fingerprint)
        (folder / MANIFEST).unlink()  # the new version has its own
        with closing(SavedModel(folder, ref, features)) as original:
            original.compare_golden()
            _write(folder, original, quantise=quantise)
            parity = _compared(folder, original, ref, features)
        if problems := parity.problems(QUANTISED if quantise else EXACT):
            raise Refused(f"{name} version {version} as LiteRT: {'; '.join(problems)}")
        with closing(LiteRtModel(folder, ref, features)) as served:
            served.warm()
        new = registry.publish(folder, _facts(facts, version, quantise, parity, clock), key)
        size = (folder / MODEL_FILE).stat().st_size
        return Derived(version=new, parent=version, size_bytes=size, parity=parity)
    finally:
        shutil.rmtree(folder)


def _write(folder: Path, original: SavedModel, *, quantise: bool) -> None:
    (folder / MODEL_FILE).write_bytes(converted(folder, quantise=quantise))
    np.save(folder / CATALOGUE, _catalogue(folder, original), allow_pickle=False)


def _catalogue(folder: Path, original: SavedModel) -> Array:
    """All items that the graph can retrieve, ascending: asked for until it has no more."""
    call = next(c for c in read_calls(folder / GOLDEN) if c.signature == RETRIEVE)
    specs = original.signatures[RETRIEVE].inputs
    one = {n: a[:1] for n, a in call.inputs.items() if specs[n].lead == "rows"}
    one[EXCLUDE] = np.zeros((1, 1), np.int64)
    k = FIRST_K
    while k <= MAX_ITEMS:
        try:
            asked = one | {K: np.asarray(k, np.int32)}
            items = original.predict(RETRIEVE, asked, 1)["items"]
        except Rejected as rejected:
            raise Refused(f"the items that are known cannot be listed: {rejected}") from rejected
        known = np.unique(items.view(np.uint64))
        if known[0] == 0:
            return known[1:]
        k *= 2
    raise Refused(f"{folder} knows more than {MAX_ITEMS} items")


def _compared(folder: Path, original: SavedModel, ref: ModelRef, features: FeatureSet) -> Parity:
    """The converted model against the original; its own answers become its golden calls."""
    with closing(LiteRtModel(folder, ref, features, golden=GOLDEN)) as made:
        calls = [*read_calls(folder / WARMUP), *read_calls(folder / GOLDEN)]
        parity = compared(original, made, calls)
        golden = [replace(c, outputs=_answer(made, c)) for c in read_calls(folder / GOLDEN)]
    write_calls(folder / GOLDEN_FILE, golden)
    return parity


def compared(original: TensorModel, made: TensorModel, calls: Sequence[Call]) -> Parity:
    """
    How close the answers to these calls are.

    The places of a tower's vector mean nothing by themselves: only products of vectors are served.
    """
    gaps, shares = [0.0], [1.0]
    for call in calls:
        if call.signature not in (RETRIEVE, RANK):
            continue
        before, after = _answer(original, call), _answer(made, call)
        gaps.append(_gap(before["scores"], after["scores"]))
        if call.signature == RETRIEVE:
            pairs = zip(before["items"], after["items"], strict=True)
            shares += [float(np.isin(row, found).mean()) for row, found in pairs]
    return Parity(gap=max(gaps), same_items=float(np.mean(shares[1:] or shares)))


def _answer(model: TensorModel, call: Call) -> dict[str, Array]:
    return model.predict(call.signature, call.inputs, _rows(call, model.signatures))


def _rows(call: Call, signatures: Mapping[str, Signature]) -> int:
    specs = signatures[call.signature].inputs
    return next(len(a) for n, a in call.inputs.items() if specs[n].lead == "rows")


def _gap(expected: Array, found: Array) -> float:
    with np.errstate(invalid="ignore"):  # -inf less -inf: equal, below
        gap = np.abs(found - expected) / (1 + np.abs(expected))
    gap[found == expected] = 0
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0))


def _facts(
    facts: ModelFacts, parent: int, quantise: bool, parity: Parity, clock: Clock
) -> ModelFacts:
    """Those of the parent, but for what made this version: no training job did."""
    kind = "dynamic-range int8" if quantise else "float32"
    data = [one for one in facts.data if one.name != JOB_KEY]
    return replace(
        facts,
        parent=parent,
        created_at=clock.now_ms(),
        data=(*data, Attribute(name="litert", value=kind)),
        metrics=(
            *facts.metrics,
            Measure(name="litert_gap", value=parity.gap),
            Measure(name="litert_same_items", value=parity.same_items),
        ),
    )
