"""ExtractionLevel against numpy, expert by expert; what its gates see, what gradients reach, its matrix products."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from round_trip import assert_saved_and_cloned

from mtlzoo.layers import ExtractionLevel

RNG = np.random.default_rng(0)
TASKS, ROWS, WIDTH = 3, 6, 5
X = RNG.normal(size=(ROWS, WIDTH)).astype("float32")  # one input for all groups
GROUPS = RNG.normal(size=(ROWS, TASKS + 1, WIDTH)).astype("float32")  # an input for each
INPUTS = {"one": X, "each": GROUPS}


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def randomized(level: ExtractionLevel, inputs: np.ndarray) -> ExtractionLevel:
    level(inputs)
    for weight in level.weights:  # biases too
        weight.assign(RNG.normal(scale=0.5, size=weight.shape))
    return level


def expert_kernels(level: ExtractionLevel) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Kernels and biases of each expert, in the order of experts."""
    experts = []
    for stack in level.experts:
        for i in range(stack.num_experts):
            part = slice(i * stack.units[0], (i + 1) * stack.units[0])
            layers = [(stack.first_kernel.numpy()[:, part], stack.first_bias.numpy()[part])]
            later = zip(stack.kernels, stack.biases, strict=True)
            experts.append(layers + [(kernel.numpy()[i], bias.numpy()[i, 0]) for kernel, bias in later])
    return experts


def gate_kernels(level: ExtractionLevel) -> list[np.ndarray]:
    """The kernel of each task's gate."""
    joint = level.task_gates.numpy()
    return list(joint) if joint.ndim == 3 else np.split(joint, level.num_tasks, axis=1)


def owners(level: ExtractionLevel) -> list[int]:
    """The group of each expert; the shared group is the last."""
    own = [task for task in range(level.num_tasks) for _ in range(level.own_experts)]
    return own + [level.num_tasks] * level.shared_experts


def by_hand(level: ExtractionLevel, inputs: np.ndarray) -> np.ndarray:
    """The formula with tanh experts, expert by expert and gate by gate."""
    x = [inputs] * (level.num_tasks + 1) if inputs.ndim == 2 else list(inputs.transpose(1, 0, 2))
    groups, found = owners(level), []
    for group, layers in zip(groups, expert_kernels(level), strict=True):
        h = x[group]
        for kernel, bias in layers:
            h = np.tanh(h @ kernel + bias)
        found.append(h)
    mixed = []
    for task, kernel in enumerate(gate_kernels(level)):
        seen = [h for group, h in zip(groups, found, strict=True) if group in (task, level.num_tasks)]
        weights = softmax(x[task] @ kernel)
        mixed.append(sum(weights[:, i : i + 1] * h for i, h in enumerate(seen)))
    if level.shared_output:
        weights = softmax(x[level.num_tasks] @ level.shared_gate.numpy())
        mixed.append(sum(weights[:, i : i + 1] * h for i, h in enumerate(found)))
    return np.stack(mixed, axis=1)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("own", "shared", "units"), [(2, 1, (7,)), (1, 3, (7, 4)), (0, 2, (4,)), (2, 0, (7, 4))])
@pytest.mark.parametrize("shared_output", [False, True])
def test_a_level_is_its_formula(inputs, own, shared, units, shared_output):
    x = INPUTS[inputs] if shared or inputs == "one" else GROUPS[:, :TASKS]
    shared_output = shared_output and shared > 0
    level = randomized(ExtractionLevel(TASKS, own, shared, units, shared_output, activation="tanh"), x)
    expected = by_hand(level, x)
    assert expected.shape == (ROWS, TASKS + shared_output, units[-1])
    for run in (level, tf.function(level)):
        np.testing.assert_allclose(run(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", INPUTS)
def test_gates_sum_to_one_and_see_no_other_tasks_experts(inputs):
    level = randomized(ExtractionLevel(TASKS, 2, 1, (4,), shared_output=True), INPUTS[inputs])
    weights = level.weights_of(INPUTS[inputs]).numpy()
    assert weights.shape == (ROWS, TASKS + 1, len(owners(level)))
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
    for gate in range(TASKS + 1):
        sees = np.array([gate == TASKS or group in (gate, TASKS) for group in owners(level)])
        assert np.all(weights[:, gate, sees] > 0)
        assert np.all(weights[:, gate, ~sees] == 0)


@pytest.mark.parametrize("inputs", INPUTS)
def test_a_tasks_output_depends_on_its_own_and_the_shared_group_alone(inputs):
    level = randomized(ExtractionLevel(TASKS, 2, 1, (4,), True, activation="tanh"), INPUTS[inputs])
    x = tf.constant(INPUTS[inputs])
    for output in range(TASKS + 1):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(level(x)[:, output] ** 2)
        kernels = [stack.first_kernel.value for stack in level.experts]
        by_x, *by_kernel = tape.gradient(y, [x, *kernels])
        of_expert = np.split(np.concatenate(by_kernel, axis=1), len(owners(level)), axis=1)
        for group, gradient in zip(owners(level), of_expert, strict=True):
            assert np.any(gradient != 0) == (output == TASKS or group in (output, TASKS))
        if inputs == "each":
            for group in range(TASKS + 1):
                assert np.any(by_x[:, group] != 0) == (output == TASKS or group in (output, TASKS))


@pytest.mark.parametrize(("inputs", "batched"), [("one", 1), ("each", 2)])
def test_all_gates_are_one_product(inputs, batched):
    """Single products: one for each expert and one more; batched ones: the mixture, and task gates on many inputs."""
    level = randomized(ExtractionLevel(TASKS, 2, 1, (4,), shared_output=True), INPUTS[inputs])
    operations = tf.function(level).get_concrete_function(tf.constant(INPUTS[inputs])).graph.get_operations()
    kinds = [operation.type for operation in operations]
    assert (kinds.count("MatMul"), kinds.count("BatchMatMulV2")) == (2 * TASKS + 1 + 1, batched)


@pytest.mark.parametrize("shape", [(None, 40), (None, 3, 40)])
@pytest.mark.parametrize("seed", [None, 3])
def test_experts_and_gates_start_different_with_the_fans_of_one(shape, seed):
    initializer = keras.initializers.GlorotUniform(seed=seed)
    level = ExtractionLevel(2, 2, 3, (60,), shared_output=True, kernel_initializer=initializer)
    level.build(shape)
    experts = [layers[0][0] for layers in expert_kernels(level)]
    gates = [*gate_kernels(level), level.shared_gate.numpy()]
    for kernels, fan_outs in ((experts, [60] * 7), (gates, [5, 5, 7])):
        for i, (kernel, fan_out) in enumerate(zip(kernels, fan_outs, strict=True)):
            limit = np.sqrt(6 / (40 + fan_out))
            assert 0.9 * limit < np.max(np.abs(kernel)) <= limit
            assert all(np.any(kernel != other) for other in kernels[:i] if other.shape == kernel.shape)


def test_experts_drop_out_only_in_training():
    level = ExtractionLevel(1, 0, 1, (500,), activation=None, dropout=0.5)
    assert np.all(level(X, training=False) != 0)
    assert 0.4 < np.mean(level(X, training=True) == 0) < 0.6


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    for x in INPUTS.values():
        level = randomized(ExtractionLevel(TASKS, 2, 1, (4,), True, activation="tanh", dtype=policy), x)
        y = tf.function(level)(x)
        assert y.dtype == keras.dtype_policies.get(policy).compute_dtype
        np.testing.assert_allclose(np.asarray(y, "float32"), by_hand(level, x), atol=0.05)
        weights = level.weights_of(x)
        assert weights.dtype == tf.float32
        np.testing.assert_allclose(np.sum(weights, axis=-1), 1.0, rtol=1e-6)
        assert all(weight.dtype == "float32" for weight in level.trainable_weights)


def test_save_load_and_clone(tmp_path):
    inputs = keras.Input((WIDTH,))
    first = ExtractionLevel(2, 2, 1, (7, 4), True, "gelu", 0.2, "he_normal")
    last = ExtractionLevel(2, 1, 2, [6])
    model = keras.Model(inputs, last(first(inputs)))
    assert first.compute_output_shape((None, WIDTH)) == (None, 3, 4)
    assert model.output_shape == (None, 2, 6)
    assert_saved_and_cloned(model, X, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 0}, "num_tasks must be at least 1, is 0"),
        ({"own_experts": 0, "shared_experts": 0}, "one of them at least 1, are 0 and 0"),
        ({"own_experts": -1}, "must be at least 0, .*are -1 and 1"),
        ({"shared_experts": 0, "shared_output": True}, "shared_output needs shared experts"),
        ({"units": ()}, "units must name at least one layer"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, is 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"num_tasks": 2, "own_experts": 1, "shared_experts": 1, "units": (4,)}
    with pytest.raises(ValueError, match=message):
        ExtractionLevel(**{**good, **arguments})


def test_another_input_is_refused():
    with pytest.raises(ValueError, match=r"\[batch, D\] or \[batch, 3, D\], has shape \(6, 4, 5\)"):
        ExtractionLevel(2, 1, 1, (4,))(GROUPS)
    with pytest.raises(ValueError, match=r"\[batch, D\] or \[batch, 2, D\]"):
        ExtractionLevel(2, 1, 0, (4,))(GROUPS[:, :3])
    with pytest.raises(ValueError, match="call it once"):
        ExtractionLevel(2, 1, 1, (4,)).weights_of(X)
