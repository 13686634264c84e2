"""StackedExperts against separate MLPs; SoftmaxGate against its formula."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import MLP, SoftmaxGate, StackedExperts
from mtlzoo.layers.per_part import PerPart

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype("float32")
EXPERTS = RNG.normal(size=(6, 3, 4)).astype("float32")


def separate(layer: StackedExperts) -> list[MLP]:
    """The experts as MLPs with the same weights."""
    width = layer.units[0]
    mlps = []
    for i in range(layer.num_experts):
        mlp = MLP(layer.units, activation=layer.activation)
        mlp(X)
        part = slice(i * width, (i + 1) * width)
        weights = [layer.first_kernel.numpy()[:, part], layer.first_bias.numpy()[part]]
        for kernel, bias in zip(layer.kernels, layer.biases, strict=True):
            weights += [kernel.numpy()[i], bias.numpy()[i, 0]]
        mlp.set_weights(weights)
        mlps.append(mlp)
    return mlps


@pytest.mark.parametrize("units", [(7,), (1,), (7, 4), (7, 1, 3)])
@pytest.mark.parametrize("in_graph", [False, True])
def test_experts_are_separate_mlps(units, in_graph):
    experts = StackedExperts(3, units, activation="tanh")
    experts(X)
    for weight in experts.weights:  # biases too
        weight.assign(RNG.normal(size=weight.shape))
    out = (tf.function(experts) if in_graph else experts)(X)
    assert out.shape == (6, 3, units[-1])
    for i, mlp in enumerate(separate(experts)):
        np.testing.assert_allclose(out[:, i], mlp(X), rtol=1e-5, atol=1e-6)


def test_experts_start_different_with_the_fans_of_one():
    experts = StackedExperts(4, (60, 50), kernel_initializer="glorot_uniform")
    experts.build((None, 40))
    first = np.split(experts.first_kernel.numpy(), 4, axis=1)
    for kernels, fan_in, fan_out in ((first, 40, 60), (list(experts.kernels[0].numpy()), 60, 50)):
        limit = np.sqrt(6 / (fan_in + fan_out))
        for i, kernel in enumerate(kernels):
            assert 0.95 * limit < np.max(np.abs(kernel)) <= limit
            assert all(np.any(kernel != other) for other in kernels[:i])


def test_a_seeded_initializer_still_gives_different_experts():
    kernel = PerPart(keras.initializers.GlorotUniform(seed=3), 2)((5, 8))
    assert np.any(kernel[:, :4] != kernel[:, 4:])
    np.testing.assert_array_equal(kernel, PerPart(keras.initializers.GlorotUniform(seed=3), 2)((5, 8)))


def test_the_same_seed_gives_the_same_weights():
    drawn = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        experts, gate = StackedExperts(3, (7, 4)), SoftmaxGate(2)
        gate((X, experts(X)))
        drawn.append([w.numpy() for w in experts.weights + gate.weights])
    for a, b, c in zip(*drawn, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(a != c) or not np.any(a)  # biases are zeros


def test_experts_drop_out_only_in_training():
    experts = StackedExperts(2, (50, 60), activation=None, dropout=0.5)
    assert np.all(experts(X, training=False) != 0)
    assert 0.3 < np.mean(experts(X, training=True) == 0) < 0.7


def test_gate_by_its_formula():
    gate = SoftmaxGate(2)
    mixed = gate((X, EXPERTS))
    kernel = gate.kernel.numpy()
    weights = gate.weights_of(X)
    for t in range(2):
        scores = np.exp(X @ kernel[:, t * 3 : (t + 1) * 3])
        softmax = scores / scores.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(weights[:, t], softmax, rtol=1e-5)
        expected = sum(softmax[:, i : i + 1] * EXPERTS[:, i] for i in range(3))
        np.testing.assert_allclose(mixed[:, t], expected, rtol=1e-4, atol=1e-5)


def test_gates_start_different_with_the_fans_of_one():
    gate = SoftmaxGate(2)
    gate.build(((None, 40), (None, 60, 4)))
    first, second = np.split(gate.kernel.numpy(), 2, axis=1)
    assert np.any(first != second)
    limit = np.sqrt(6 / (40 + 60))
    assert 0.95 * limit < np.max(np.abs(first)) <= limit


def test_one_expert_passes_through():
    np.testing.assert_allclose(SoftmaxGate(2)((X, EXPERTS[:, :1]))[:, 1], EXPERTS[:, 0], rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    experts, gate = StackedExperts(3, (7, 4), dropout=0.1, dtype=policy), SoftmaxGate(2, dtype=policy)
    hidden = experts(X)
    mixed = tf.function(lambda x, e: gate((x, e)))(X, hidden)
    half = keras.dtype_policies.get(policy).compute_dtype
    assert hidden.dtype == half
    assert mixed.dtype == half
    assert gate.weights_of(X).dtype == tf.float32
    np.testing.assert_allclose(np.sum(gate.weights_of(X), axis=-1), np.ones((6, 2)), rtol=1e-6)
    assert all(w.dtype == "float32" for w in experts.trainable_weights + gate.trainable_weights)


def test_save_load_and_clone(tmp_path):
    inputs = keras.Input((5,))
    experts = StackedExperts(3, (7, 4), "gelu", 0.2, "he_normal")
    gate = SoftmaxGate(2, kernel_initializer="he_normal")
    model = keras.Model(inputs, gate((inputs, experts(inputs))))
    assert model.output_shape == (None, 2, 4)
    assert experts.compute_output_shape((None, 5)) == (None, 3, 4)
    assert gate.compute_output_shape(((None, 5), (None, 3, 4))) == (None, 2, 4)
    model.save(tmp_path / "m.keras")
    again, clone = keras.models.load_model(tmp_path / "m.keras"), keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (again, clone):
        assert [layer.get_config() for layer in other.layers[1:]] == [layer.get_config() for layer in model.layers[1:]]
        np.testing.assert_array_equal(other(X), model(X))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_experts.*0"):
        StackedExperts(0, (4,))
    with pytest.raises(ValueError, match="units"):
        StackedExperts(2, ())
    with pytest.raises(ValueError, match=r"\(6, 3, 4\)"):
        StackedExperts(2, (4,))(EXPERTS)
    with pytest.raises(ValueError, match="num_gates.*0"):
        SoftmaxGate(0)
    with pytest.raises(ValueError, match="call it once"):
        SoftmaxGate(1).weights_of(X)
