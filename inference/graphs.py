"""
Graphs in memory: a version whose graph is there already takes it over, with values of its own.

To parse a graph and to call each of its functions for the first time takes seconds of processor
time, which the requests that are served meanwhile wait for. Retrained versions differ in their
variables alone.

TensorFlow takes seconds to import: import this late.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import digits
from typing import Any, Final
from weakref import WeakValueDictionary

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

# Names of the formats: "Using the SavedModel format" and "Training checkpoints", tensorflow.org.
_GRAPH: Final = "saved_model.pb"
_VARIABLES: Final = ("variables", "variables")
_INDEX: Final = ("variables", "variables.index")
_OBJECTS: Final = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE: Final = "VARIABLE_VALUE"
_ARGUMENT: Final = "_user_specified_name"
_SHARED: Final = "shared_name"

Variables = Mapping[str, tf.Variable]  # by their key in the checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """A version's functions, by signature."""

    calls: Mapping[str, Any]
    taken_over: bool  # from a version before: each has been called already
    held: object  # what must live as long as they do


class Graphs:
    """
    The graphs of the versions in memory; one lives as long as a version that has it. To be opened
    by one thread at a time.
    """

    def __init__(self) -> None:
        self._by_digest: WeakValueDictionary[bytes, _Graph] = WeakValueDictionary()

    def open(self, folder: Path) -> Functions:
        """
        The functions of a SavedModel folder.

        Two folders have one graph if it is written the same but for the numbers in the names of its
        functions, and all that its functions read beside their inputs are variables that are handed
        to them: no constant or table, which stands elsewhere, and nothing that is found by a name.

        Raises:
            Exception: TensorFlow raises whatever a broken file provokes.
        """
        written = SavedModel.FromString((folder / _GRAPH).read_bytes())
        named = _finds_by_name(written)
        digest = _digest(written)
        graph = self._by_digest.get(digest)
        if graph is not None:
            stored = tf.train.load_checkpoint(str(folder.joinpath(*_VARIABLES)))
            return graph.functions(stored.get_tensor, taken_over=True)
        loaded = tf.saved_model.load(str(folder))
        own = None if named else _variables(loaded, folder)
        if own is None:
            return Functions(calls=loaded.signatures, taken_over=False, held=loaded)
        graph = self._by_digest[digest] = _Graph(loaded, own)
        # The values go on to the version, the graph keeps none: it may outlive that version.
        found = graph.functions(lambda key: own[key].read_value(), taken_over=False)
        for variable in own.values():
            _empty(variable)
        return found


def _finds_by_name(written: SavedModel) -> bool:
    """Whether a function holds an operation whose resource others know by its name."""
    functions = (f for meta in written.meta_graphs for f in meta.graph_def.library.function)
    return any(_SHARED in node.attr for function in functions for node in function.node_def)


def _digest(saved: SavedModel) -> bytes:
    """
    SHA-256 of a stored graph without the numbers that a process gives functions and variables.

    They count all that the process made, so each training's are others; their order stays.
    TensorFlow's own fingerprint does not tell what functions do. Changes its argument.
    """
    found = hashlib.sha256()
    for meta in saved.meta_graphs:
        graph, objects = meta.graph_def, meta.object_graph_def
        numbered = sorted(graph.library.function, key=lambda f: _numbered(f.signature.name))
        named = {
            f.signature.name: f"{_numbered(f.signature.name)[1]}{at}"
            for at, f in enumerate(numbered)
        }
        for function in numbered:
            function.signature.name = named[function.signature.name]
            _name_called(function.node_def, named)
            for argument in function.arg_attr.values():
                if argument.attr[_ARGUMENT].s.isdigit():  # what is captured has a number as a name
                    argument.attr[_ARGUMENT].s = b""
            found.update(function.SerializeToString(deterministic=True))
        _name_called(graph.node, named)
        for node in objects.nodes:
            if node.HasField("bare_concrete_function"):
                bare = node.bare_concrete_function
                name = bare.concrete_function_name
                bare.concrete_function_name = named.get(name, name)
            names = node.function.concrete_functions
            names[:] = [named.get(name, name) for name in names]
        for name in sorted(objects.concrete_functions, key=_numbered):
            found.update(named.get(name, name).encode())
            found.update(objects.concrete_functions[name].SerializeToString(deterministic=True))
        graph.library.ClearField("function")
        objects.ClearField("concrete_functions")
    found.update(saved.SerializeToString(deterministic=True))
    return found.digest()


def _numbered(name: str) -> tuple[int, str]:
    """The number at the end of a function's name, and what stands before it."""
    before = name.rstrip(digits)
    return int(name[len(before) :] or 0), before


def _name_called(nodes: Iterable[Any], named: Mapping[str, str]) -> None:
    """Rename the functions that nodes call."""
    for node in nodes:
        for attribute in node.attr.values():
            if attribute.HasField("func"):
                attribute.func.name = named.get(attribute.func.name, attribute.func.name)


class _Graph:
    """Functions that are called with the variables of different versions."""

    def __init__(self, loaded: Any, own: Variables) -> None:
        """`own`: the variables that the functions came with; all that they capture."""
        self._loaded, self._own = loaded, own
        self._key_of = {id(variable.handle): key for key, variable in own.items()}

    def functions(self, value_of: Callable[[str], Any], *, taken_over: bool) -> Functions:
        """The functions with variables of these values, by the keys of the checkpoint."""
        variables = {
            key: tf.Variable(value_of(key), trainable=False, dtype=own.dtype, shape=own.shape)
            for key, own in self._own.items()
        }
        calls: dict[str, Any] = {}
        for signature, function in self._loaded.signatures.items():
            calls[signature] = copy.copy(function)
            captured = [variables[self._key_of[id(h)]].handle for h in function.captured_inputs]
            calls[signature].set_external_captures(captured)
        return Functions(calls=calls, taken_over=taken_over, held=(self, variables))


def _variables(loaded: Any, folder: Path) -> Variables | None:
    """What a folder's signatures capture; None unless all of it is variables with a place."""
    if not folder.joinpath(*_INDEX).exists():
        return None  # there are none
    stored = tf.train.load_checkpoint(str(folder.joinpath(*_VARIABLES)))
    if not stored.has_tensor(_OBJECTS):
        return None  # of TensorFlow 1: variables have no place in an object
    captured = {id(h) for call in loaded.signatures.values() for h in call.captured_inputs}
    every = _stored_variables(loaded, stored.get_tensor(_OBJECTS))
    found = {key: one for key, one in every if id(one.handle) in captured}
    return found if len({id(one.handle) for one in found.values()}) == len(captured) else None


def _stored_variables(loaded: Any, objects: bytes) -> Iterator[tuple[str, tf.Variable]]:
    """Key and variable: the loaded objects beside the checkpoint's account of them."""
    graph, view = TrackableObjectGraph.FromString(objects), tf.train.TrackableView(loaded)
    left, seen = [(0, loaded)], {0}
    while left:
        node, found = left.pop()
        for attribute in graph.nodes[node].attributes:
            if attribute.name == _VALUE and isinstance(found, tf.Variable):
                yield attribute.checkpoint_key, found
        inside = view.children(found)
        for child in graph.nodes[node].children:
            if child.node_id not in seen and child.local_name in inside:
                seen.add(child.node_id)
                left.append((child.node_id, inside[child.local_name]))


def _empty(variable: tf.Variable) -> None:
    """Give a variable's memory back, whatever shape it should have."""
    nothing = tf.zeros([0], variable.dtype)
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=nothing, validate_shape=False)
