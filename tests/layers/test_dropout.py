"""Dropout from bytes: shares, scale, seeds, dtypes; in models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo import backend
from mtlzoo.layers import MLP, Dropout

ONES = np.ones((2000, 100), "float32")


@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 5), (4, 8), (0, 3)])
@pytest.mark.parametrize("in_graph", [False, True])
def test_random_bytes_have_the_shape_and_follow_from_the_seed(shape, in_graph):
    def draw(seed):
        return backend.random_bytes(shape, seed)

    draw = tf.function(draw) if in_graph else draw
    a, b, c = (draw(tf.constant(seed)).numpy() for seed in ([1, 2], [1, 2], [1, 3]))
    assert a.shape == shape
    assert a.dtype == np.uint8
    np.testing.assert_array_equal(a, b)
    assert a.size < 5 or np.any(a != c)


def test_random_bytes_are_uniform_and_independent_of_their_neighbours():
    drawn = backend.random_bytes((1000, 1001), tf.constant([5, 6])).numpy().ravel()
    counts = np.bincount(drawn, minlength=256)
    expected = drawn.size / 256
    assert np.sum((counts - expected) ** 2) / expected < 330  # chi-square, 255 degrees: 330 is the .999 quantile
    centred = drawn - 127.5
    for lag in (1, 2, 3, 4, 1001):
        assert abs(np.mean(centred[:-lag] * centred[lag:])) / centred.var() < 4 / np.sqrt(drawn.size)


@pytest.mark.parametrize(("rate", "share"), [(0.1, 26 / 256), (0.5, 0.5), (0.001, 1 / 256), (0.9999, 255 / 256)])
def test_share_and_scale(rate, share):
    dropped = Dropout(rate, seed=3)(ONES, training=True).numpy()
    assert abs(np.mean(dropped == 0) - share) < 4 * np.sqrt(share * (1 - share) / ONES.size)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - share), rtol=1e-6)


def test_each_call_draws_anew_and_a_seed_repeats_the_stream():
    a, b = Dropout(0.3, seed=1), Dropout(0.3, seed=1)
    first, second = a(ONES, training=True).numpy(), a(ONES, training=True).numpy()
    assert np.mean((first == 0) != (second == 0)) > 0.4
    np.testing.assert_array_equal(b(ONES, training=True).numpy(), first)


@pytest.mark.parametrize("training", [False, None])
def test_nothing_happens_outside_training_or_at_rate_0(training):
    np.testing.assert_array_equal(Dropout(0.5)(ONES, training=training).numpy(), ONES)
    np.testing.assert_array_equal(Dropout(0.0)(ONES, training=True).numpy(), ONES)


def test_the_gradient_passes_where_the_element_was_kept():
    x, layer = tf.Variable(np.random.default_rng(0).normal(size=(20, 6)).astype("float32")), Dropout(0.5, seed=2)
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
    gradient = tape.gradient(y, x).numpy()
    np.testing.assert_array_equal(gradient, np.where(y.numpy() == 0, 0.0, 2.0))
    assert {0.0, 2.0} == set(gradient.ravel())


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_dtypes(dtype):
    dropped = Dropout(0.25, dtype=dtype)(ONES, training=True)
    assert dropped.dtype == keras.dtype_policies.get(dtype).compute_dtype
    assert {0.0} < set(tf.cast(dropped, tf.float32).numpy().ravel().tolist())


def test_in_fit_with_batches_of_unknown_size_and_after_loading(tmp_path):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(1)(MLP((7, 3), dropout=0.4)(inputs)))
    model.compile(optimizer="adam", loss="mse")
    x = np.random.default_rng(1).normal(size=(50, 5)).astype("float32")
    model.fit(x, x[:, :1], batch_size=16, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    states = [variable for variable in again.variables if variable.path.endswith("seed_generator_state")]
    assert len(states) == 2


def test_serialization_and_errors():
    layer = keras.layers.deserialize(keras.layers.serialize(Dropout(0.3, seed=4)))
    assert type(layer) is Dropout
    assert layer.rate == 0.3
    assert layer.seed == 4
    assert layer.threshold == 77
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, is 1\.0"):
        Dropout(1.0)
    with pytest.raises(ValueError, match="noise_shape"):
        Dropout(0.5, noise_shape=(None, 1))
