"""WeightedPooling by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import WeightedPooling

EMBEDDINGS = np.array([[[1.0, 10.0], [5.0, 50.0], [9.0, 90.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]], "float32")
WEIGHTS = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], "float32")


@pytest.mark.parametrize(
    ("combiner", "expected"),
    [("sum", [23.0, 230.0]), ("mean", [23 / 7, 230 / 7]), ("sqrtn", [23 / 5, 230 / 5])],
)
@pytest.mark.parametrize("in_graph", [False, True])
def test_by_hand_and_empty_lists_are_zeros(combiner, expected, in_graph):
    layer = WeightedPooling(combiner)
    pooled = (tf.function(layer) if in_graph else layer)((tf.constant(EMBEDDINGS), tf.constant(WEIGHTS)))
    np.testing.assert_allclose(pooled, [expected, [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_gradients_of_empty_lists_are_finite(combiner):
    embeddings, weights = tf.Variable(EMBEDDINGS), tf.Variable(WEIGHTS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(WeightedPooling(combiner)((embeddings, weights)) ** 2)
    for gradient in tape.gradient(loss, [embeddings, weights]):
        assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient_of_the_empty_list(combiner), np.zeros((3, 2)))


def gradient_of_the_empty_list(combiner):
    embeddings = tf.Variable(EMBEDDINGS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(WeightedPooling(combiner)((embeddings, tf.constant(WEIGHTS))))
    return tape.gradient(loss, embeddings)[1]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
def test_weights_beyond_float16_do_not_overflow(policy, combiner):
    layer = WeightedPooling(combiner, dtype=policy)
    pooled = layer((tf.constant(EMBEDDINGS), tf.constant([[1e5, 0.0, 0.0], [0.0, 1e6, 0.0]])))
    assert pooled.dtype == keras.dtype_policies.get(policy).compute_dtype
    np.testing.assert_allclose(tf.cast(pooled, "float32"), [[1.0, 10.0], [3.0, 4.0]])


def test_save_load_and_shape(tmp_path):
    inputs = (keras.Input((3, 2)), keras.Input((3,)))
    model = keras.Model(inputs, WeightedPooling("sqrtn")(inputs))
    assert model.output_shape == (None, 2)
    assert WeightedPooling().compute_output_shape(((None, 3, 2), (None, 3))) == (None, 2)
    model.save(tmp_path / "m.keras")
    for other in (keras.models.load_model(tmp_path / "m.keras"), keras.models.clone_model(model)):
        np.testing.assert_array_equal(other((EMBEDDINGS, WEIGHTS)), model((EMBEDDINGS, WEIGHTS)))


def test_unknown_combiner():
    with pytest.raises(ValueError, match="'max'"):
        WeightedPooling("max")
