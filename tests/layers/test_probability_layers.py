"""Probabilities and logits along the funnel: against float64, at extreme values, and through whole models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo import backend
from mtlzoo.layers import ConditionalLogit, JointLogit, Probability
from mtlzoo.losses import BinaryCrossentropy

LAYERS = [Probability, JointLogit, ConditionalLogit]
GRID = [-1e4, -300.0, -20.0, -3.0, -0.1, 0.0, 0.5, 4.0, 20.0, 300.0, 1e4]


def pairs() -> tuple[tf.Tensor, tf.Tensor]:
    a, b = np.meshgrid(GRID, GRID)
    return tf.constant(a.reshape(-1, 1), tf.float32), tf.constant(b.reshape(-1, 1), tf.float32)


def log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x, "float64"))


def logit_of_log(log_p):
    return log_p - np.log(-np.expm1(log_p))


# JointLogit


@pytest.mark.parametrize("logits", [(0.0, 0.0), (1.5, -2.0), (3.0, 0.25, -1.0), (2.0, -0.5, 1.0, 0.3)])
def test_joint_logit_is_the_logit_of_the_product(logits):
    p = np.prod(1 / (1 + np.exp(-np.array(logits))))
    joint = JointLogit()([tf.constant([[z]]) for z in logits])
    np.testing.assert_allclose(joint, [[np.log(p / (1 - p))]], rtol=1e-5)


def test_joint_logit_at_extremes():
    a, b = pairs()
    x, y = a.numpy().astype("float64"), b.numpy().astype("float64")
    exact = -np.logaddexp(np.logaddexp(-x, -y), -x - y)
    np.testing.assert_allclose(JointLogit()([a, b]), exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(JointLogit()([tf.constant([[1e4]]), tf.constant([[0.3]])]), [[0.3]], rtol=1e-6)


@pytest.mark.parametrize("layer", [JointLogit(), ConditionalLogit()])
def test_gradients_are_finite_everywhere(layer):
    a, b = pairs()
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        out = layer([a, b])
    for gradient in [out, *tape.gradient(out, [a, b])]:
        assert np.all(np.isfinite(gradient))


def test_gradient_of_the_joint_logit_against_differences():
    a, b = tf.constant([[0.7], [-3.0]]), tf.constant([[-1.2], [2.0]])
    with tf.GradientTape() as tape:
        tape.watch(a)
        joint = JointLogit()([a, b])
    step = 1e-2
    difference = (JointLogit()([a + step, b]) - JointLogit()([a - step, b])) / (2 * step)
    np.testing.assert_allclose(tape.gradient(joint, a), difference, atol=1e-4)


def test_joint_logit_wants_two():
    with pytest.raises(ValueError, match="two or more"):
        JointLogit()([tf.constant([[1.0]])])
    with pytest.raises(ValueError, match="two or more"):
        JointLogit()(tf.constant([[1.0]]))


# ConditionalLogit


@pytest.mark.parametrize(("p_joint", "p_parent"), [(0.01, 0.04), (0.3, 0.9), (1e-6, 1e-3), (0.5, 0.5001)])
def test_conditional_logit_is_the_logit_of_the_ratio(p_joint, p_parent):
    joint, parent = (tf.constant([[np.log(p / (1 - p))]], tf.float32) for p in (p_joint, p_parent))
    p = tf.sigmoid(ConditionalLogit()((joint, parent)))
    np.testing.assert_allclose(p, [[p_joint / p_parent]], rtol=1e-4)


def test_conditional_logit_at_extremes():
    a, b = pairs()
    j, q = a.numpy().astype("float64"), b.numpy().astype("float64")
    limit = np.log((1 - 1e-6) / 1e-6)
    with np.errstate(all="ignore"):
        exact = np.where(j < q, logit_of_log(log_sigmoid(j) - log_sigmoid(q)), limit)
        # log s(q) - log s(j) rounds to 0 for large logits even in float64: log s(z) = -exp(-z) to first order.
        both_large = (j >= 20) & (q > j)
        exact = np.where(both_large, j - np.log(-np.expm1(-(q - j))), exact)
    np.testing.assert_allclose(ConditionalLogit()((a, b)), np.minimum(exact, limit), rtol=2e-6, atol=1e-6)


def test_conditional_logit_undoes_the_joint_logit():
    a, b = (tf.constant(np.random.default_rng(i).normal(size=(200, 1)) * 3, tf.float32) for i in (0, 1))
    np.testing.assert_allclose(ConditionalLogit()((JointLogit()([a, b]), a)), b, atol=1e-4, rtol=1e-3)


def test_a_joint_probability_above_the_parents_is_clipped():
    p = tf.sigmoid(ConditionalLogit()((tf.constant([[2.0], [1.0]]), tf.constant([[1.0], [1.0]]))))
    np.testing.assert_allclose(1.0 - p, [[1e-6], [1e-6]], rtol=0.05)


# All three


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_float32_whatever_the_policy(layer, policy):
    half = keras.dtype_policies.get(policy).compute_dtype
    inputs = [tf.cast([[-1.5]], half), tf.cast([[0.25]], half)]
    out = layer(dtype=policy)(inputs[0] if layer is Probability else inputs)
    assert out.dtype == tf.float32


@pytest.mark.parametrize("layer", LAYERS)
def test_shape_and_serialization(layer, tmp_path):
    inputs = [keras.Input((1,)), keras.Input((1,))]
    model = keras.Model(inputs, layer(name="out")(inputs[0] if layer is Probability else inputs))
    assert model.output_shape == (None, 1)
    shapes = (None, 1) if layer is Probability else [(None, 1), (None, 1)]
    assert layer().compute_output_shape(shapes) == (None, 1)
    model.save(tmp_path / "m.keras")
    x = [np.array([[-1.0], [2.0]]), np.array([[3.0], [0.5]])]
    for other in (keras.models.load_model(tmp_path / "m.keras"), keras.models.clone_model(model)):
        np.testing.assert_array_equal(other(x), model(x))


# Logits survive the model


@pytest.fixture(params=["built", "cloned", "reloaded"])
def extreme_model(request, tmp_path):
    """A model whose logit is -200 x + 0 whatever policy or detour; p rounds to 0 in float32."""
    inputs = keras.Input((1,))
    outputs = {"click": Probability(name="click")(keras.layers.Dense(1, name="logit")(inputs))}
    model = keras.Model(inputs, outputs)
    weights = [np.array([[-200.0]]), np.zeros(1)]
    model.set_weights(weights)
    if request.param == "cloned":
        model = keras.models.clone_model(model)
        model.set_weights(weights)
    if request.param == "reloaded":
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    return model


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_loss_is_computed_from_logits_in_fit_and_evaluate(extreme_model, run_eagerly):
    extreme_model.compile(
        optimizer=keras.optimizers.SGD(1.0), loss={"click": BinaryCrossentropy()}, run_eagerly=run_eagerly
    )
    x, y, weight = np.ones((4, 1)), {"click": np.ones((4, 1))}, {"click": np.ones((4, 1))}
    assert extreme_model.evaluate(x, y, sample_weight=weight, verbose=0) == pytest.approx(200.0)
    history = extreme_model.fit(x, y, sample_weight=weight, batch_size=4, verbose=0).history
    assert history["loss"][0] == pytest.approx(200.0)
    kernel, bias = extreme_model.get_weights()
    assert kernel[0, 0] == pytest.approx(-199.0)  # the gradient of -log p at p = 0 is -1
    assert bias[0] == pytest.approx(1.0)


def test_logits_of_probabilities_without_logits():
    p = tf.constant([[0.25], [0.0], [1.0]])
    np.testing.assert_allclose(backend.logits_of(p)[0], [-np.log(3.0)], rtol=1e-6)
    assert np.all(np.isfinite(backend.logits_of(p)))
    np.testing.assert_allclose(tf.sigmoid(backend.logits_of(p)), p, atol=2e-7)


def test_logits_of_a_plain_sigmoid_in_a_graph():
    logits = tf.function(lambda z: backend.logits_of(tf.sigmoid(z)))(tf.constant([[-200.0]]))
    assert float(logits[0, 0]) == -200.0
