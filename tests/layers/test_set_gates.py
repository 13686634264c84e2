"""Gates over sets of modules, and the task-sensitive gate: sums of one, numpy references, and what gradients reach."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import FeatureScale, InputGates, ModuleGate, TaskSensitiveGate

# Two gates; of four modules each mixes its own set and the others.
SETS = [
    [[True, True, False, False], [False, False, True, True]],
    [[False, False, True, False], [True, True, False, True]],
]


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def weights_by_hand(scores: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Softmax over the modules of each set alone: `[B, modules]` and `[sets, modules]` to `[B, sets, modules]`."""
    weights = np.zeros((len(scores), *sets.shape))
    for s, inside in enumerate(sets):
        weights[:, s, inside] = softmax(scores[:, inside])
    return weights


def test_input_gates_are_a_softmax_within_each_set():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    gates = InputGates(SETS)
    weights = gates(x).numpy()
    assert weights.shape == (5, 2, 2, 4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
    scores = x @ gates.kernel.numpy()
    for g in range(2):
        expected = weights_by_hand(scores[:, 4 * g : 4 * g + 4], np.array(SETS[g]))
        np.testing.assert_allclose(weights[:, g], expected, rtol=1e-5, atol=1e-7)
        assert np.all(weights[:, g][:, ~np.array(SETS[g])] == 0)


def test_a_set_survives_scores_far_below_those_of_the_others():
    gates = InputGates([[[True, False], [False, True]]], kernel_initializer="zeros")
    gates.build((None, 1))
    gates.kernel.assign([[1000.0, -1000.0]])
    np.testing.assert_array_equal(gates(np.ones((1, 1), "float32")).numpy()[0, 0], np.eye(2))


def test_module_gate_scores_each_module_by_its_own_output():
    rng = np.random.default_rng(1)
    modules = rng.normal(size=(6, 4, 3)).astype("float32")
    gate = ModuleGate(SETS[0])
    gate(modules)
    gate.bias.assign(rng.normal(size=4))
    scores = np.maximum(np.einsum("bnh,hn->bn", modules, gate.kernel.numpy()) + gate.bias.numpy(), 0.0)
    np.testing.assert_allclose(gate(modules).numpy(), weights_by_hand(scores, np.array(SETS[0])), rtol=1e-5, atol=1e-7)


def test_task_sensitive_gate_scales_and_detaches():
    values, p = tf.Variable(np.arange(12.0, dtype="float32").reshape(2, 3, 2)), tf.Variable([[0.0], [0.25]])
    for detach in (True, False):
        gate = TaskSensitiveGate(detach)
        with tf.GradientTape() as tape:
            out = gate((values, p))
        np.testing.assert_array_equal(out.numpy(), values.numpy() * p.numpy()[:, :, None])
        by_values, by_p = tape.gradient(out, [values, p])
        np.testing.assert_array_equal(by_values.numpy()[1], np.full((3, 2), 0.25))
        if detach:
            assert by_p is None
        else:
            np.testing.assert_array_equal(by_p.numpy()[:, 0], values.numpy().sum(axis=(1, 2)))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_weights_are_float32_and_survive_saving(tmp_path, policy):
    x = keras.Input((3,))
    modules = keras.layers.Reshape((4, 1))(keras.layers.Dense(4, dtype=policy)(FeatureScale(dtype=policy)(x)))
    p = keras.layers.Dense(1, activation="sigmoid")(x)
    scaled = TaskSensitiveGate(dtype=policy)((modules, p))
    model = keras.Model(x, [InputGates(SETS, dtype=policy)(x), ModuleGate(SETS[0], dtype=policy)(scaled)])
    model.save(tmp_path / "gates.keras")
    batch = np.random.default_rng(2).normal(size=(4, 3)).astype("float32")
    for a, b in zip(model(batch), keras.models.load_model(tmp_path / "gates.keras")(batch), strict=True):
        assert a.dtype == "float32"
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_bad_sets_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[gates, sets, modules\], has shape \(2, 4\)"):
        InputGates(SETS[0])
    with pytest.raises(ValueError, match="set 1 of gate 0 has no module"):
        InputGates([[[True, True], [False, False]]])
    with pytest.raises(ValueError, match=r"must have shape \[batch, 4, H\]"):
        ModuleGate(SETS[0])(np.zeros((2, 3, 5), "float32"))
    with pytest.raises(ValueError, match="probability"):
        TaskSensitiveGate()((np.zeros((2, 3), "float32"), np.zeros((2, 2), "float32")))
