"""A version takes over the graph of one in memory if nothing but its variables differs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.tf

CALL = "serving_default"
MIB = 2**20


@pytest.fixture
def graphs():
    from inference.graphs import Graphs

    return Graphs()


def saved(folder: Path, values: np.ndarray, *, add: float = 0.0) -> Path:
    """A model that multiplies by its values' sum, and adds what is part of its graph."""
    import tensorflow as tf

    module = tf.Module()
    module.values = tf.Variable(values, shape=[None], trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def times(x):
        return {"y": x * tf.reduce_sum(module.values) + add}

    tf.saved_model.save(module, str(folder), signatures={CALL: times})
    return folder


def of_ones(functions) -> float:
    import tensorflow as tf

    return float(functions.calls[CALL](x=tf.ones([1]))["y"].numpy()[0])


def test_a_graph_is_taken_over_with_other_values(graphs, tmp_path: Path) -> None:
    one = graphs.open(saved(tmp_path / "1", np.full(2, 1.0, np.float32)))
    two = graphs.open(saved(tmp_path / "2", np.full(5, 2.0, np.float32)))
    assert (one.taken_over, two.taken_over) == (False, True)
    assert [of_ones(f) for f in (one, two, one)] == [2.0, 10.0, 2.0]
    del one
    assert of_ones(two) == 10.0
    three = graphs.open(saved(tmp_path / "3", np.full(1, 3.0, np.float32)))
    assert three.taken_over
    assert [of_ones(f) for f in (three, two)] == [3.0, 10.0]


def test_a_graph_goes_with_its_last_version(graphs, tmp_path: Path) -> None:
    folder = saved(tmp_path / "1", np.ones(2, np.float32))
    functions = graphs.open(folder)
    del functions
    gc.collect()
    assert not graphs.open(folder).taken_over


def test_another_graph_is_not_taken_over(graphs, tmp_path: Path) -> None:
    one = graphs.open(saved(tmp_path / "1", np.ones(2, np.float32)))
    two = graphs.open(saved(tmp_path / "2", np.ones(2, np.float32), add=0.5))
    assert not two.taken_over
    assert [of_ones(f) for f in (one, two)] == [2.0, 2.5]


def test_values_of_a_version_that_is_gone_make_room(graphs, tmp_path: Path) -> None:
    """Above all those that the graph came with: it lives on."""
    import tensorflow as tf

    folder = saved(tmp_path / "1", np.ones(16 * MIB, np.float32))
    one, two = (graphs.open(folder) for _ in range(2))
    assert two.taken_over
    # TensorFlow keeps what it frees: what it has to spare by now is taken.
    taken = [tf.ones([16 * MIB]) for _ in range(6)]
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    del one
    gc.collect()
    three = graphs.open(folder)
    assert process.memory_info().rss < before + 32 * MIB
    assert [of_ones(f) for f in (two, three)] == [16 * MIB, 16 * MIB]
    del taken


def with_table(folder: Path) -> Path:
    """What the graph looks up stands in a file beside it."""
    import tensorflow as tf

    words = folder.parent / "words.txt"
    words.write_text(f"a\n{folder.name}\n")
    module = tf.Module()
    module.table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(words),
            *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
            *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
        ),
        num_oov_buckets=1,
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def places(x):
        return {"y": x + tf.cast(module.table.lookup(tf.constant([folder.name])), tf.float32)}

    tf.saved_model.save(module, str(folder), signatures={CALL: places})
    return folder


def with_constant(folder: Path) -> Path:
    """A tensor that the function captures, and that the graph's hash does not tell."""
    import tensorflow as tf

    module = tf.Module()
    module.value = tf.constant(float(folder.name))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def plus(x):
        return {"y": x + module.value}

    tf.saved_model.save(module, str(folder), signatures={CALL: plus})
    return folder


def with_name(folder: Path) -> Path:
    """A variable that the function finds by its name."""
    import tensorflow as tf

    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def times(x):
        found = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="factor")
        tf.raw_ops.AssignVariableOp(resource=found, value=float(folder.name))
        return {"y": x * tf.raw_ops.ReadVariableOp(resource=found, dtype=tf.float32)}

    tf.saved_model.save(module, str(folder), signatures={CALL: times})
    return folder


def of_version_1(folder: Path) -> Path:
    """TensorFlow 1's way: variables are named, and belong to no object."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None], name="x")
        values = tf.compat.v1.get_variable("v", initializer=float(folder.name), use_resource=True)
        y = x * values
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": y})
    return folder


def without_variables(folder: Path) -> Path:
    """TensorFlow 1 writes no file of variables if there are none."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None], name="x")
        y = x * float(folder.name)
        tf.compat.v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": y})
    return folder


def of_keras(folder: Path) -> Path:
    """As Keras exports it: functions beside the signatures, and each variable stored twice."""
    import keras

    keras.utils.clear_session()
    inputs = keras.Input((1,), name="x")
    layer = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.full((1, 1), float(folder.name))])
    model.export(str(folder), verbose=False)
    return folder


def test_a_graph_that_keras_exports_is_taken_over(graphs, tmp_path: Path) -> None:
    import tensorflow as tf

    found = [graphs.open(of_keras(tmp_path / name)) for name in ("2", "3")]
    assert [one.taken_over for one in found] == [False, True]
    for functions, factor in zip(found, (2.0, 3.0), strict=True):
        (answer,) = functions.calls[CALL](x=tf.ones([1, 1])).values()
        assert answer.numpy().tolist() == [[factor]]


@pytest.mark.parametrize(
    "write", [with_constant, with_name, with_table, of_version_1, without_variables]
)
def test_what_has_more_than_variables_is_opened_in_full(
    graphs, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    folder, other = write(tmp_path / "2"), write(tmp_path / "3")
    first, same, second = (graphs.open(one) for one in (folder, folder, other))
    assert [one.taken_over for one in (first, same, second)] == [False] * 3
    if write is not with_table:
        assert of_ones(second) - of_ones(first) == 1.0


def test_missing_variables_are_told(graphs, tmp_path: Path) -> None:
    one = graphs.open(saved(tmp_path / "1", np.ones(2, np.float32)))
    broken = saved(tmp_path / "2", np.ones(2, np.float32))
    (broken / "variables" / "variables.index").unlink()
    with pytest.raises(Exception, match=r"variables/variables"):
        graphs.open(broken)
    assert of_ones(one) == 2.0
