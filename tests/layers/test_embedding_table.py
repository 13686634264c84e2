"""EmbeddingTable: the right rows, and sparse gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import EmbeddingTable


def numbered(sizes, columns, **kwargs):
    """A table in which every element of row r is r."""
    layer = EmbeddingTable(sizes, columns, 2, **kwargs)
    layer.build((None, len(columns)))
    rows = np.arange(sum(sizes), dtype="float32")
    layer.embeddings.assign(np.stack([rows, rows], axis=1))
    return layer


@pytest.mark.parametrize("dtype", ["int32", "int64", "int16"])
@pytest.mark.parametrize("in_graph", [False, True])
def test_each_column_looks_up_its_own_table(dtype, in_graph):
    layer = numbered([3, 5, 2], [0, 2, 1, 1])
    call = tf.function(layer) if in_graph else layer
    out = call(tf.constant([[0, 1, 4, 0], [2, 0, 3, 1]], dtype))
    assert out.shape == (2, 4, 2)
    np.testing.assert_array_equal(out[..., 0], [[0, 9, 7, 3], [2, 8, 6, 4]])
    np.testing.assert_array_equal(out[..., 1], out[..., 0])


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [([[3, 5]], "int32"), ([[-1, -7]], "int32"), ([[2**31 - 1, -(2**31)]], "int32"), ([[2**32, 2**32 + 1]], "int64")],
)
def test_ids_out_of_range_go_to_the_out_of_vocabulary_row(ids, dtype):
    out = numbered([3, 5], [0, 1])(tf.constant(ids, dtype))
    np.testing.assert_array_equal(out[0, :, 0], [0, 3])


def test_offsets_are_int64_where_int32_is_too_small():
    layer = EmbeddingTable([2**31, 10], [0, 1], 1)
    assert layer._index_dtype(np.zeros((1, 2), "int32")) == "int64"
    assert layer._column_offsets[1] == 2**31
    assert EmbeddingTable([2**31 - 11, 10], [0, 1], 1)._index_dtype(np.zeros((1, 2), "int32")) == "int32"


def test_the_gradient_names_the_rows_looked_up():
    layer = numbered([3, 5], [0, 1])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant([[1, 2], [1, 9]])) * tf.constant([[[1.0], [10.0]], [[100.0], [1000.0]]]))
    gradient = tape.gradient(loss, layer.embeddings.value)
    assert isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(tf.convert_to_tensor(gradient)[:, 0], [0, 101, 0, 1000, 0, 10, 0, 0])


@pytest.mark.parametrize("in_graph", [False, True])
def test_one_gather_and_no_read_of_the_table(in_graph):
    layer = numbered([3, 5], [0, 1])
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((None, 2), "int32")).graph
    nested = [f.graph.get_operations() for f in graph._functions.values() if hasattr(f, "graph")]
    kinds = [op.type for ops in [graph.get_operations(), *nested] for op in ops]
    assert kinds.count("ResourceGather") == 1
    assert "ReadVariableOp" not in kinds


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_casts_rows_and_not_the_table(policy):
    layer = numbered([3, 5], [0, 1], dtype=policy)
    with tf.GradientTape() as tape:
        out = layer(tf.constant([[1, 2]]))
        loss = tf.reduce_sum(tf.cast(out, "float32"))
    assert out.dtype == keras.dtype_policies.get(policy).compute_dtype
    assert layer.embeddings.dtype == "float32"
    gradient = tape.gradient(loss, layer.embeddings.value)
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.values.dtype == tf.float32


def test_the_default_start_does_not_depend_on_the_sizes():
    for sizes in ([10_000], [100, 200_000]):
        layer = EmbeddingTable(sizes, [0], 4)
        layer.build((None, 1))
        assert np.std(layer.embeddings.numpy()) == pytest.approx(0.1, rel=0.02)


def test_the_same_seed_gives_the_same_table():
    tables = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        layer = EmbeddingTable([7], [0], 3)
        layer.build((None, 1))
        tables.append(layer.embeddings.numpy())
    np.testing.assert_array_equal(tables[0], tables[1])
    assert np.any(tables[0] != tables[2])


def test_save_load_and_clone(tmp_path):
    inputs = keras.Input((2,), dtype="int32")
    model = keras.Model(inputs, EmbeddingTable([3, 5], [0, 1], 2, embeddings_initializer="he_normal")(inputs))
    assert model.output_shape == (None, 2, 2)
    assert model.layers[1].compute_output_shape((None, 2)) == (None, 2, 2)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    ids = np.array([[1, 4], [2, 9]], "int32")
    for other in (again, clone):
        np.testing.assert_array_equal(other(ids), model(ids))
        assert other.layers[1].get_config() == model.layers[1].get_config()
        assert not other.layers[1].supports_jit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [0], 2), r"sizes .*\(\)"),
        (([3, 0], [0], 2), r"sizes .*\(3, 0\)"),
        (([3], [1], 2), r"columns .*\(1,\)"),
        (([3], [], 2), r"columns .*\(\)"),
        (([3], [0], 0), "width .*0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingTable(*arguments)


def test_bad_ids_are_named():
    with pytest.raises(ValueError, match=r"float32"):
        numbered([3, 5], [0, 1])(tf.constant([[1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"\[batch, 2\].*\(1, 3\)"):
        EmbeddingTable([3, 5], [0, 1], 2)(tf.constant([[1, 2, 1]]))
