"""MLP against the same layers by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import MLP

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


def test_is_linear_and_activation_in_turn():
    mlp = MLP((4, 3))
    out = mlp(X)
    w0, b0, w1, b1 = [w.numpy() for w in mlp.weights]
    np.testing.assert_allclose(out, np.maximum(np.maximum(X @ w0 + b0, 0) @ w1 + b1, 0), rtol=1e-5, atol=1e-6)


def test_layer_normalisation_stands_before_the_activation():
    mlp = MLP((4,), normalization="layer")
    out = mlp(X)
    kernel = mlp.weights[0].numpy()
    h = X @ kernel
    h = (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(out, np.maximum(h, 0), rtol=1e-4, atol=1e-5)


def test_batch_normalisation_uses_the_batch_only_in_training():
    mlp = MLP((4,), activation=None, normalization="batch")
    np.testing.assert_allclose(np.mean(mlp(X, training=True), axis=0), np.zeros(4), atol=1e-5)
    assert np.max(np.abs(np.mean(mlp(X, training=False), axis=0))) > 1e-2
    assert len(mlp.trainable_weights) == 3  # kernel, gamma, beta: no bias


def test_dropout_only_in_training():
    mlp = MLP((200,), activation=None, dropout=0.5)
    assert np.all(mlp(X, training=False) != 0)
    assert 0.3 < np.mean(mlp(X, training=True) == 0) < 0.7


def test_no_units_is_the_identity():
    mlp = MLP(())
    np.testing.assert_array_equal(mlp(X), X)
    assert mlp.compute_output_shape((None, 5)) == (None, 5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
def test_mixed_precision(policy, normalization):
    mlp = MLP((4, 3), normalization=normalization, dropout=0.1, dtype=policy)
    out = tf.function(lambda x: mlp(x, training=True))(X)
    assert out.dtype == keras.dtype_policies.get(policy).compute_dtype
    assert all(w.dtype == "float32" for w in mlp.trainable_weights)


@pytest.mark.parametrize("normalization", [None, "batch", "layer"])
def test_save_load_and_clone(normalization, tmp_path):
    inputs = keras.Input((5,))
    mlp = MLP((4, 3), "gelu", 0.2, normalization, "he_normal")
    model = keras.Model(inputs, mlp(inputs))
    assert model.output_shape == (None, 3)
    model.save(tmp_path / "m.keras")
    again, clone = keras.models.load_model(tmp_path / "m.keras"), keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (again, clone):
        assert other.layers[1].get_config() == mlp.get_config()
        np.testing.assert_array_equal(other(X), model(X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": (4, 0)}, r"\(4, 0\)"),
        ({"units": (4,), "dropout": 1.0}, "dropout.*1.0"),
        ({"units": (4,), "normalization": "group"}, "'group'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)
