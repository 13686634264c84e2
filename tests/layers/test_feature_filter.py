"""The filter on inputs by its formula, its special cases, precision, saving."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import FeatureFilter

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype("float32")


def randomised(layer: FeatureFilter) -> FeatureFilter:
    """The layer, built, with random weights, biases too."""
    layer(X)
    layer.set_weights([RNG.normal(size=weight.shape) for weight in layer.weights])
    return layer


def by_formula(layer: FeatureFilter, x: np.ndarray) -> np.ndarray:
    """The filter in numpy."""
    w_1, b_1, w_2, b_2 = layer.get_weights()
    return x * 2.0 / (1.0 + np.exp(-(np.maximum(x @ w_1 + b_1, 0.0) @ w_2 + b_2)))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("units", [1, 8])
def test_it_follows_its_formula(units, in_graph):
    layer = randomised(FeatureFilter(units))
    out = (tf.function(layer) if in_graph else layer)(X)
    assert out.shape == layer.compute_output_shape(X.shape) == X.shape
    np.testing.assert_allclose(out, by_formula(layer, X), rtol=1e-5, atol=1e-6)


def test_a_second_kernel_of_zeros_is_the_identity():
    layer = randomised(FeatureFilter(8))
    layer.factors.set_weights([np.zeros((8, 5)), np.zeros(5)])
    np.testing.assert_array_equal(layer(X), X)


def test_factors_start_near_one_and_stay_between_zero_and_two():
    layer = FeatureFilter(16)
    wide = RNG.normal(size=(64, 100)).astype("float32")
    factors = layer(wide) / wide
    np.testing.assert_array_equal(layer.factors.bias, np.zeros(100))
    np.testing.assert_allclose(np.mean(factors), 1.0, atol=0.1)
    for bias, limit in ((40.0, 2.0), (-40.0, 0.0)):
        layer.factors.bias.assign(np.full(100, bias))
        np.testing.assert_allclose(layer(wide), limit * wide, rtol=0, atol=1e-6)


def test_a_factor_reads_all_inputs():
    layer = randomised(FeatureFilter(8))
    moved = X + np.eye(5, dtype="float32")[0]
    others = np.not_equal(layer(moved), layer(X))[:, 1:]
    assert np.all(np.any(others, axis=0))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    layer, exact = FeatureFilter(8, dtype=policy), randomised(FeatureFilter(8))
    layer.build(X.shape)
    layer.set_weights(exact.get_weights())
    out = layer(X)
    assert out.dtype == layer.compute_dtype == policy.removeprefix("mixed_")
    assert all(weight.dtype == "float32" for weight in layer.weights)
    np.testing.assert_allclose(tf.cast(out, "float32"), exact(X), atol=0.05)


def test_a_model_with_it_is_saved_and_predicts_batches_of_any_size(tmp_path):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, randomised(FeatureFilter(8))(inputs))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.layers[1].get_config() == model.layers[1].get_config()
    np.testing.assert_array_equal(again(X), model(X))
    np.testing.assert_allclose(model.predict(X, batch_size=4, verbose=0), model(X), rtol=1e-6, atol=1e-7)


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="units.*0"):
        FeatureFilter(0)
