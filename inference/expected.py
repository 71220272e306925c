"""
What the signatures of a model must take to fit a feature set, and how they differ from it.

Pure: whatever runs the model says what it takes as `inference.tensors.Signature`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from features.declare import FeatureSet, Level
from inference.samples import ITEM, ITEMS, QUERY, RANK, RETRIEVE, USER_FLOATS, USER_LONGS
from inference.tensors import CANDIDATES, K, Signature, TensorSpec

EXCLUDE = "exclude"  # [rows, e]: item hashes that are never to be retrieved
Inputs = Mapping[str, TensorSpec]
_HASHES = TensorSpec(dtype="int64", shape=(None, None))


def expected_inputs(features: FeatureSet) -> dict[str, dict[str, TensorSpec]]:
    """Signature -> input name -> what a model of this feature set must take."""
    users = input_specs(features, Level.USER)
    k = TensorSpec(dtype="int32", shape=(), lead="none")
    return {
        RETRIEVE: users | {EXCLUDE: _HASHES, K: k},
        RANK: users | input_specs(features, Level.ITEM, pairs=True) | {CANDIDATES: _HASHES},
    }


def input_specs(
    features: FeatureSet, level: Level, *, pairs: bool = False
) -> dict[str, TensorSpec]:
    """A level's features as inputs of a signature, by name. `pairs`: one a candidate of a row."""
    return {
        f.name: TensorSpec(
            dtype=f.dtype,
            shape=(None,) if f.length == 1 else (None, f.length),
            lead="pairs" if pairs else "rows",
        )
        for f in features.of(level)
    }


def packed_specs(features: FeatureSet) -> dict[str, TensorSpec]:
    """User features as `features.assemble` packs them, as inputs of a signature."""
    return {
        name: TensorSpec(dtype=dtype, shape=(None, features.width(Level.USER, dtype)))
        for name, dtype in ((USER_LONGS, "int64"), (USER_FLOATS, "float32"))
    }


def with_leads(inputs: Inputs, features: FeatureSet) -> dict[str, TensorSpec]:
    """Inputs of one signature as a runtime tells them, with what the first axis of each counts."""
    pairs = {f.name for f in features.of(Level.ITEM)} if CANDIDATES in inputs else set()
    return {
        name: replace(spec, lead="none" if not spec.shape else "pairs" if name in pairs else "rows")
        for name, spec in inputs.items()
    }


def signature_problems(found: Mapping[str, Inputs], features: FeatureSet) -> list[str]:
    """What a model asks for, compared with what the feature set gives: a line a difference."""
    problems = []
    wanted = expected_inputs(features)
    if QUERY in found or ITEMS in found:  # one is of no use without the other
        # An item tower takes what it likes of what an item is, whoever looks at it, and when.
        own = {f.name for f in features.of(Level.ITEM, "int64")} & found.get(ITEMS, {}).keys()
        taken = {n: s for n, s in input_specs(features, Level.ITEM).items() if n in own}
        taken[ITEM] = TensorSpec(dtype="int64", shape=(None,))
        wanted |= {QUERY: packed_specs(features), ITEMS: taken}
    for signature, expected in wanted.items():
        inputs = found.get(signature)
        if inputs is None:
            problems.append(f"signature {signature!r} is missing")
            continue
        problems += [
            f"{signature}: input {name!r} is missing" for name in sorted(expected.keys() - inputs)
        ]
        problems += [
            f"{signature}: input {name!r} is no feature"
            for name in sorted(inputs.keys() - expected)
        ]
        problems += [
            f"{signature}: input {name!r} is {inputs[name]}, expected {spec}"
            for name, spec in expected.items()
            if name in inputs and not _same(inputs[name], spec)
        ]
    return problems


def inputs_of(signatures: Mapping[str, Signature]) -> dict[str, Inputs]:
    """What each signature takes."""
    return {name: signature.inputs for name, signature in signatures.items()}


def _same(one: TensorSpec, other: TensorSpec) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)
