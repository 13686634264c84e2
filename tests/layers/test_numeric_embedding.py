"""Embeddings of numbers against their formulas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from round_trip import assert_saved_and_cloned

from mtlzoo.layers import PeriodicEmbedding, PiecewiseLinearEmbedding

KNOTS = [[-1.0, 0.0, 0.5, 3.0], [0.25], [-2.0, 2.0]]
X = np.random.default_rng(0).normal(scale=2.0, size=(50, 3)).astype("float32")


def randomised(layer):
    layer(X)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def piecewise_linear(layer, x, column):
    """`e` as numpy interpolates it: the values at the knots, and the slopes of both ends."""
    kernel, bias = layer.kernel.numpy()[column], layer.bias.numpy()[column]
    knots, last = np.array(KNOTS[column]), len(KNOTS[column])
    at_knots = bias + np.vstack([np.zeros(layer.units), np.cumsum(kernel[1:last], axis=0)])
    between = np.stack([np.interp(x, knots, at_knots[:, unit]) for unit in range(layer.units)], axis=1)
    below, above = np.minimum(x - knots[0], 0.0), np.maximum(x - knots[-1], 0.0)
    return between + below[:, None] * kernel[0] + above[:, None] * kernel[last]


@pytest.mark.parametrize("in_graph", [False, True])
def test_piecewise_linear_by_its_formula(in_graph):
    layer = randomised(PiecewiseLinearEmbedding(KNOTS, 4))
    found = (tf.function(layer) if in_graph else layer)(X).numpy()
    assert found.shape == layer.compute_output_shape(X.shape) == (50, 3, 4)
    for column in range(3):
        np.testing.assert_allclose(
            found[:, column], piecewise_linear(layer, X[:, column], column), rtol=1e-4, atol=1e-4
        )


def test_a_slope_is_learned_from_the_numbers_of_its_piece_alone():
    layer = PiecewiseLinearEmbedding(KNOTS[:1], 2)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(np.array([[0.2]], "float32")))  # between the second and the third knot
    gradient = tape.gradient(total, layer.kernel.value).numpy()[0]
    np.testing.assert_allclose(gradient[:, 0], [0.0, 1.0, 0.4, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("in_graph", [False, True])
def test_periodic_by_its_formula(in_graph):
    layer = randomised(PeriodicEmbedding(4, frequencies=5))
    found = (tf.function(layer) if in_graph else layer)(X).numpy()
    turns, kernel, bias = layer.get_weights()
    angle = 2 * np.pi * X[:, :, None] * turns
    waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    expected = np.maximum(np.einsum("bmh,mhu->bmu", waves, kernel) + bias, 0.0)
    assert found.shape == layer.compute_output_shape(X.shape) == (50, 3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_frequencies_start_with_the_deviation_asked_for():
    layer = PeriodicEmbedding(1, frequencies=2000, sigma=0.3)
    layer(X)
    assert layer.get_weights()[0].std() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("kind", ["piecewise_linear", "periodic"])
def test_mixed_precision_rounds_no_number(kind):
    far = [[knot + 100.0 for knot in knots] for knots in KNOTS]  # at 100, bfloat16 knows every other half only

    def make(dtype):
        options = {"dtype": dtype, "units": 4}
        return randomised(
            PiecewiseLinearEmbedding(far, **options) if kind == "piecewise_linear" else PeriodicEmbedding(**options)
        )

    exact, mixed = (make(dtype)(tf.constant(X + 100.0)) for dtype in ("float32", "mixed_bfloat16"))
    assert mixed.dtype == "bfloat16"
    exact, mixed = exact.numpy(), tf.cast(mixed, tf.float32).numpy()
    assert np.median(np.abs(mixed - exact)) < 0.01 * np.median(np.abs(exact[exact != 0]))


@pytest.mark.parametrize("layer", [PiecewiseLinearEmbedding(KNOTS, 4), PeriodicEmbedding(4, 3, 0.5)])
def test_saved_and_cloned(layer, tmp_path):
    inputs = keras.Input((3,))
    assert_saved_and_cloned(keras.Model(inputs, layer(inputs)), X, tmp_path)


@pytest.mark.parametrize("layer", [PiecewiseLinearEmbedding([[0.0, 1.0]], 4), PeriodicEmbedding(4)])
def test_it_learns_a_step(layer):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).uniform(-1, 2, size=(2000, 1)).astype("float32")
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs))))
    model.compile(optimizer=keras.optimizers.Adam(0.03), loss="mse")
    target = np.clip(x, 0.0, 1.0)  # one slope between two knots: a line has a mean squared error of 0.016
    assert model.fit(x, target, epochs=20, verbose=0).history["loss"][-1] < 0.004


def test_errors():
    for knots, message in (([], "is empty"), ([[1.0, 1.0]], "column 0 must be"), ([[1.0], []], "column 1 must be")):
        with pytest.raises(ValueError, match=message):
            PiecewiseLinearEmbedding(knots, 4)
    with pytest.raises(ValueError, match=r"must have shape \[batch, 3\], has shape \(50, 2\)"):
        PiecewiseLinearEmbedding(KNOTS, 4)(X[:, :2])
    with pytest.raises(ValueError, match=r"must have shape \[batch, M\]"):
        PeriodicEmbedding(4)(X[0])
    with pytest.raises(ValueError, match="sigma must be above 0"):
        PeriodicEmbedding(4, sigma=0.0)
    with pytest.raises(ValueError, match="units must be at least 1"):
        PeriodicEmbedding(0)
