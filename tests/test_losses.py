"""Losses against numpy, on their own population, at extreme logits."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss

from mtlzoo.losses import BinaryCrossentropy, Focal, SquaredError

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, (40, 1)).astype("float32")
LOGITS = RNG.normal(size=(40, 1)).astype("float32") * 3
LOSSES = [BinaryCrossentropy(), BinaryCrossentropy(pos_weight=3.0), Focal(0.75, 2.0), SquaredError()]


def sigmoid(z):
    return 1 / (1 + np.exp(-z.astype("float64")))


def test_equals_scikit_learn():
    loss = BinaryCrossentropy()(LABELS, keras.ops.sigmoid(LOGITS))
    assert float(loss) == pytest.approx(log_loss(LABELS[:, 0], sigmoid(LOGITS)[:, 0]), rel=1e-5)


def test_weights_and_positive_weight():
    p, y, w = sigmoid(LOGITS), LABELS, RNG.random((40, 1))
    expected = (w * -(3.0 * y * np.log(p) + (1 - y) * np.log(1 - p))).sum() / w.sum()
    loss = BinaryCrossentropy(pos_weight=3.0)(LABELS, keras.ops.sigmoid(LOGITS), sample_weight=w)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_focal_by_its_formula():
    p, y = sigmoid(LOGITS), LABELS
    expected = -(0.75 * (1 - p) ** 2 * y * np.log(p) + 0.25 * p**2 * (1 - y) * np.log(1 - p)).mean()
    assert float(Focal(0.75, 2.0)(LABELS, keras.ops.sigmoid(LOGITS))) == pytest.approx(expected, rel=1e-5)


def test_focal_without_focus_is_half_the_cross_entropy():
    p = keras.ops.sigmoid(LOGITS)
    half = 0.5 * float(BinaryCrossentropy()(LABELS, p))
    assert float(Focal(0.5, 0.0)(LABELS, p)) == pytest.approx(half, rel=1e-6)


def test_squared_error_by_its_formula():
    p, ratio = sigmoid(LOGITS), RNG.uniform(-0.5, 1.5, LOGITS.shape)
    errors, weights = (p - np.clip(ratio, 0, 1)) ** 2, RNG.random(LOGITS.shape)
    y_pred = keras.ops.sigmoid(LOGITS)
    assert float(SquaredError()(ratio, y_pred)) == pytest.approx(errors.mean(), rel=1e-5)
    positive = ratio > 0
    played = SquaredError(positives_only=True)
    assert float(played(ratio, y_pred)) == pytest.approx(errors[positive].mean(), rel=1e-5)
    expected = (weights * errors)[positive].sum() / weights[positive].sum()
    assert float(played(ratio, y_pred, sample_weight=weights)) == pytest.approx(expected, rel=1e-5)
    assert float(played(np.zeros_like(ratio), y_pred)) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_does_not_move_with_rows_outside_the_population(loss):
    clicked = LOGITS > 0
    inside = loss(LABELS[clicked][:, None], keras.ops.sigmoid(LOGITS[clicked][:, None]))
    among_others = loss(LABELS, keras.ops.sigmoid(LOGITS), sample_weight=clicked.astype("float32"))
    assert float(inside) == pytest.approx(float(among_others), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_population_has_loss_and_gradient_zero(loss):
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        value = loss(LABELS, keras.ops.sigmoid(logits), sample_weight=np.zeros((40, 1), "float32"))
    assert float(value) == 0.0
    np.testing.assert_array_equal(tape.gradient(value, logits), np.zeros((40, 1)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("logit", [-1e4, -200.0, 0.0, 200.0, 1e4])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_values_and_gradients_are_finite_at_any_logit(loss, logit, label):
    logits = tf.Variable([[logit]])
    with tf.GradientTape() as tape:
        value = loss([[label]], keras.ops.sigmoid(logits))
    assert np.isfinite(value)
    assert np.all(np.isfinite(tape.gradient(value, logits)))


def test_a_certain_mistake_costs_its_logit_and_has_a_gradient():
    logits = tf.Variable([[-200.0]])
    with tf.GradientTape() as tape:
        value = BinaryCrossentropy()([[1.0]], keras.ops.sigmoid(logits))
    assert float(value) == 200.0
    np.testing.assert_allclose(tape.gradient(value, logits), [[-1.0]])


def test_other_reductions():
    p = keras.ops.sigmoid(LOGITS)
    each = BinaryCrossentropy(reduction=None)(LABELS, p)
    assert each.shape == (40,)
    assert float(BinaryCrossentropy(reduction="sum")(LABELS, p)) == pytest.approx(float(np.sum(each)), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        BinaryCrossentropy(2.0, name="b"),
        Focal(0.75, 1.5, reduction="sum", name="f"),
        SquaredError(positives_only=True, name="s"),
    ],
)
def test_serialization(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    p = keras.ops.sigmoid(LOGITS)
    assert float(again(LABELS, p)) == float(loss(LABELS, p))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="pos_weight.*0.0"):
        BinaryCrossentropy(pos_weight=0.0)
    with pytest.raises(ValueError, match="alpha.*1.5"):
        Focal(alpha=1.5)
    with pytest.raises(ValueError, match="gamma.*-1"):
        Focal(gamma=-1.0)
    with pytest.raises(ValueError, match=r"\(40,\).*\(40, 1\)"):  # broadcast, it would be a [40, 40] loss
        BinaryCrossentropy()(LABELS[:, 0], keras.ops.sigmoid(LOGITS))
