"""The transfer between tasks by its formula, its attention, precision, saving, inputs that do not fit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import InformationTransfer

RNG = np.random.default_rng(0)
OWN = RNG.normal(size=(6, 5)).astype("float32")
RECEIVED = RNG.normal(size=(6, 3)).astype("float32")


def randomised(layer: InformationTransfer) -> InformationTransfer:
    """The layer, built, with random weights, biases too."""
    layer((OWN, RECEIVED))
    layer.set_weights([RNG.normal(scale=0.7, size=weight.shape) for weight in layer.weights])
    return layer


def by_formula(layer: InformationTransfer, own: np.ndarray, received: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output and both weights, row by row in numpy."""
    w_1, w_2, w_3 = np.split(layer.kernel.numpy(), 3, axis=1)
    outputs, weights = [], []
    for v, p in zip(own, received, strict=True):
        q = np.maximum(p @ layer.transfer_kernel.numpy() + layer.transfer_bias.numpy(), 0.0)
        scores = np.exp([(u @ w_1) @ (u @ w_2) / np.sqrt(len(v)) for u in (v, q)])
        weights.append(scores / scores.sum())
        outputs.append(weights[-1][0] * v @ w_3 + weights[-1][1] * q @ w_3)
    return np.array(outputs), np.array(weights)


@pytest.mark.parametrize("in_graph", [False, True])
def test_it_follows_its_formula(in_graph):
    layer = randomised(InformationTransfer())
    out = (tf.function(layer) if in_graph else layer)((OWN, RECEIVED))
    assert out.shape == layer.compute_output_shape((OWN.shape, RECEIVED.shape)) == OWN.shape
    expected, weights = by_formula(layer, OWN, RECEIVED)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.attention((OWN, RECEIVED)), weights[:, 1], rtol=1e-4)


def test_weights_sum_to_one():
    """With values of 1 the output is the sum of the weights."""
    layer = randomised(InformationTransfer())
    kernel = np.zeros((5, 15), "float32")
    kernel[:, :10] = layer.kernel.numpy()[:, :10]
    kernel[0, 10:] = 1.0
    layer.kernel.assign(kernel)
    layer.transfer_kernel.assign(np.zeros((3, 5)))
    layer.transfer_bias.assign([1.0, 0.5, 0.0, -1.0, 2.0])
    own = OWN.copy()
    own[:, 0] = 1.0
    np.testing.assert_allclose(layer((own, RECEIVED)), np.ones((6, 5)), rtol=1e-6)
    share = layer.attention((own, RECEIVED)).numpy()
    assert share.dtype == np.float32
    assert np.all((share > 0) & (share < 1))
    assert np.ptp(share) > 0


def test_without_scores_both_count_half():
    layer = randomised(InformationTransfer())
    kernel = layer.kernel.numpy()
    kernel[:, :5] = 0.0
    layer.kernel.assign(kernel)
    np.testing.assert_array_equal(layer.attention((OWN, RECEIVED)), np.full(6, 0.5))
    handed_on = np.maximum(RECEIVED @ layer.transfer_kernel.numpy() + layer.transfer_bias.numpy(), 0.0)
    np.testing.assert_allclose(layer((OWN, RECEIVED)), (OWN + handed_on) / 2 @ kernel[:, 10:], rtol=1e-4, atol=1e-5)


def test_nothing_received_leaves_the_own_features():
    """Nothing scores 0, which is nothing against a high score of the own."""
    layer = randomised(InformationTransfer())
    layer.transfer_bias.assign(np.full(5, -1e3))
    layer.kernel.assign(np.concatenate([20.0 * np.eye(5), 20.0 * np.eye(5), np.eye(5)], axis=1))
    own = np.sign(OWN)
    np.testing.assert_allclose(layer((own, RECEIVED)), own, rtol=1e-6)
    np.testing.assert_allclose(layer.attention((own, RECEIVED)), np.zeros(6), atol=1e-6)


def test_kernels_start_different_with_their_own_fans():
    layer = InformationTransfer(kernel_initializer=keras.initializers.GlorotUniform(seed=3))
    layer.build(((None, 40), (None, 40)))
    kernels = [*np.split(layer.kernel.numpy(), 3, axis=1), layer.transfer_kernel.numpy()]
    for i, kernel in enumerate(kernels):
        assert 0.95 * np.sqrt(6 / 80) < np.max(np.abs(kernel)) <= np.sqrt(6 / 80)
        assert all(np.any(kernel != other) for other in kernels[:i])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    layer, exact = InformationTransfer(dtype=policy), randomised(InformationTransfer())
    layer.build((OWN.shape, RECEIVED.shape))
    layer.set_weights(exact.get_weights())
    out = tf.function(layer)((OWN, RECEIVED))
    assert out.dtype == layer.compute_dtype == policy.removeprefix("mixed_")
    assert all(weight.dtype == "float32" for weight in layer.weights)
    assert layer.attention((OWN, RECEIVED)).dtype == "float32"
    scale = np.max(np.abs(exact((OWN, RECEIVED))))
    np.testing.assert_allclose(tf.cast(out, "float32"), exact((OWN, RECEIVED)), atol=0.03 * scale)


def test_scores_do_not_overflow_in_float16():
    layer = InformationTransfer(dtype="mixed_float16")
    large = 60.0 * np.ones((2, 64), "float32")
    layer.build((large.shape, large.shape))
    layer.kernel.assign(np.concatenate([10.0 * np.eye(64), 10.0 * np.eye(64), np.eye(64)], axis=1))
    assert np.all(np.isfinite(layer((large, large))))


def test_a_model_with_it_is_saved_and_predicts_batches_of_any_size(tmp_path):
    inputs = [keras.Input((5,)), keras.Input((3,))]
    model = keras.Model(inputs, randomised(InformationTransfer("he_normal"))(inputs))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.layers[-1].get_config() == model.layers[-1].get_config()
    np.testing.assert_array_equal(again([OWN, RECEIVED]), model([OWN, RECEIVED]))
    predicted = model.predict([OWN, RECEIVED], batch_size=4, verbose=0)
    np.testing.assert_allclose(predicted, model([OWN, RECEIVED]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [(OWN,), (OWN, RECEIVED, RECEIVED), (OWN, RECEIVED[:, None])])
def test_other_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match=r"must be \(own \[batch, k\], received \[batch, k'\]\), are"):
        InformationTransfer()(inputs)
