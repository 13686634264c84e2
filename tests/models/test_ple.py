"""PLE: levels against numpy, equal to other models in special cases, and what a task's gradient reaches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_schema import IDS, small_schema

from mtlzoo.models import PLE, MMoE, SharedBottom
from pipelines import Label

FIELDS, ROWS = 4, 64
FUNNELS = {
    "none": (Label(name="income"), Label(name="married")),
    # A funnel with a label of none between.
    "three": (Label(name="click"), Label(name="like"), Label(name="purchase", parent="click")),
    "single": (Label(name="click"),),
}
SMALL = {"expert_units": (6,), "tower_units": (5,), "embedding_dim": 3, "dropout": 0.0}


def ple(labels: str = "three", **arguments) -> PLE:
    keras.utils.set_random_seed(4)
    return randomized(PLE(small_schema(FUNNELS[labels], FIELDS), **{**SMALL, **arguments}))


def randomized(model):
    """With biases that are not zero."""
    rng = np.random.default_rng(8)
    for variable in model.trainable_variables:
        if "bias" in variable.name:
            variable.assign(rng.normal(scale=0.3, size=variable.shape))
    return model


@pytest.fixture
def features():
    random = np.random.default_rng(1)
    return {
        "categorical": random.integers(0, IDS, (ROWS, FIELDS)).astype("int32"),
        "numeric": random.normal(size=(ROWS, 1)).astype("float32"),
    }


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def flat_features(model, features) -> np.ndarray:
    """What the first level reads."""
    return keras.Model(model.inputs, model.get_layer("level_1").input)(features).numpy()


def head(model, label: str, x: np.ndarray) -> np.ndarray:
    """Tower and logit by hand."""
    hidden = model.get_layer(f"{label}_tower").get_weights()
    w, b = model.get_layer(f"{label}_logit").get_weights()
    return np.maximum(x @ hidden[0] + hidden[1], 0.0) @ w + b


def columns(variable, parts: int) -> list[np.ndarray]:
    return np.split(variable.numpy(), parts, axis=-1)


def test_probabilities_are_those_of_the_formula(features):
    """Two levels, tasks click, like, purchase; two experts of each task's own and one shared, 6 wide."""
    model = ple(num_levels=2, own_experts=2, shared_experts=1, label_space="cvr_clicked")
    first, second = model.get_layer("level_1"), model.get_layer("level_2")
    x = flat_features(model, features)

    # Level 1: seven experts on x, in the order 2 of click, 2 of like, 2 of purchase, 1 shared.
    (stack,) = first.experts
    kernels = zip(columns(stack.first_kernel, 7), columns(stack.first_bias, 7), strict=True)
    found = [np.maximum(x @ kernel + bias, 0.0) for kernel, bias in kernels]
    read = []
    for task, gate in enumerate(columns(first.task_gates, 3)):
        g = softmax(x @ gate)  # [rows, 3]: own, own, shared
        read.append(g[:, :1] * found[2 * task] + g[:, 1:2] * found[2 * task + 1] + g[:, 2:] * found[6])
    g = softmax(x @ first.shared_gate.numpy())
    read.append(sum(g[:, i : i + 1] * found[i] for i in range(7)))

    # Level 2: each group's experts on what the group's gate found.
    found = []
    for group, stack in enumerate(second.experts):
        count = 2 if group < 3 else 1
        kernels = zip(columns(stack.first_kernel, count), columns(stack.first_bias, count), strict=True)
        found += [np.maximum(read[group] @ kernel + bias, 0.0) for kernel, bias in kernels]
    p = {}
    for task, label in enumerate(["click", "like", "purchase"]):
        g = softmax(read[task] @ second.task_gates.numpy()[task])
        mixed = g[:, :1] * found[2 * task] + g[:, 1:2] * found[2 * task + 1] + g[:, 2:] * found[6]
        p[label] = sigmoid(head(model, label, mixed))
    predictions = model(features)
    for label, expected in p.items():
        np.testing.assert_allclose(predictions[label].numpy(), expected, rtol=2e-5)
    np.testing.assert_allclose(predictions["ctcvr"].numpy(), p["click"] * p["purchase"], rtol=2e-5)


def give_towers_and_tables(theirs, ours) -> None:
    """Gives `theirs` the weights of `ours` in all layers but experts and gates."""
    names = {layer.name for layer in theirs.layers} & {layer.name for layer in ours.layers}
    assert sum(name.endswith("_tower") for name in names) == 3
    for name in names:
        theirs.get_layer(name).set_weights(ours.get_layer(name).get_weights())


def assert_same_predictions(a, b, features) -> None:
    p, q = a(features), b(features)
    for task in p:
        assert np.ptp(p[task].numpy()) > 0.01
        np.testing.assert_allclose(p[task].numpy(), q[task].numpy(), rtol=1e-5)


@pytest.mark.parametrize("units", [(6,), (7, 6)])
def test_one_level_without_own_experts_is_mmoe(features, units):
    ours = ple(num_levels=1, own_experts=0, shared_experts=4, expert_units=units)
    theirs = MMoE(ours.schema, num_experts=4, **{**SMALL, "expert_units": units})
    give_towers_and_tables(theirs, ours)
    level = ours.get_layer("level_1")
    theirs.get_layer("experts").set_weights(level.experts[0].get_weights())
    theirs.get_layer("gate").set_weights([level.task_gates.numpy()])
    assert ours.count_params() == theirs.count_params()
    assert_same_predictions(ours, theirs, features)


def test_levels_of_one_shared_expert_are_a_shared_bottom(features):
    """A gate over one expert weighs it 1."""
    ours = ple(num_levels=2, own_experts=0, shared_experts=1)
    theirs = SharedBottom(ours.schema, bottom_units=(6, 6), tower_units=(5,), embedding_dim=3, dropout=0.0)
    give_towers_and_tables(theirs, ours)
    experts = [ours.get_layer(f"level_{level}").experts[0].get_weights() for level in (1, 2)]
    theirs.get_layer("bottom").set_weights(experts[0] + experts[1])
    assert_same_predictions(ours, theirs, features)


def expert_gradients(model, features, task: str, level: str) -> list[np.ndarray]:
    """By group, gradients of a task's probability in the kernels of the level's experts."""
    stacks = model.get_layer(level).experts
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(model(features)[task])
    gradient = np.concatenate(tape.gradient(y, [stack.first_kernel.value for stack in stacks]), axis=1)
    return np.split(gradient, [12, 24, 36], axis=1)  # two experts of 6 units in each of three tasks


@pytest.mark.parametrize("levels", [1, 2])
def test_a_task_reaches_no_other_tasks_experts_on_the_last_level(features, levels):
    model = ple(num_levels=levels, own_experts=2, shared_experts=2, label_space="cvr_clicked")
    for task, name in enumerate(["click", "like", "purchase"]):
        reached = [np.any(g != 0) for g in expert_gradients(model, features, name, f"level_{levels}")]
        assert reached == [group in (task, 3) for group in range(4)]
        if levels == 2:  # through the shared gate
            assert all(np.any(g != 0) for g in expert_gradients(model, features, name, "level_1"))


@pytest.mark.parametrize(("own", "shared"), [(2, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("labels", FUNNELS)
def test_every_weight_is_trained(features, labels, own, shared):
    wide = {"expert_units": (32,), "tower_units": (32,)}  # some unit of each layer is active
    model = ple(labels, num_levels=3, own_experts=own, shared_experts=shared, **wide)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum([tf.reduce_sum(p) for p in model(features).values()])
    gradients = tape.gradient(y, [variable.value for variable in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.any(tf.convert_to_tensor(gradient).numpy() != 0), variable.path


def test_tasks_without_shared_experts_share_embeddings_alone(features):
    model = ple(num_levels=2, own_experts=2, shared_experts=0, label_space="cvr_clicked")
    before = {task: p.numpy() for task, p in model(features).items()}
    last = model.get_layer("level_2").experts[0]
    last.first_kernel.assign(last.first_kernel + 1.0)
    after = model(features)
    assert [task for task in before if np.any(after[task].numpy() != before[task])] == ["click", "ctcvr"]


def test_save_and_load_keep_the_arguments(features, tmp_path):
    model = ple(num_levels=3, own_experts=1, shared_experts=3, expert_units=(7, 6), label_space="ctcvr")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    for task, p in model(features).items():
        np.testing.assert_array_equal(loaded(features)[task].numpy(), p.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_levels": 0}, "num_levels must be at least 1, is 0"),
        ({"own_experts": 0, "shared_experts": 0}, "own_experts and shared_experts .* are 0 and 0"),
        ({"shared_experts": -1}, "own_experts and shared_experts .* are 3 and -1"),
        ({"expert_units": ()}, "units must name at least one layer of an expert"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ple(**arguments)
