"""MaskedDense against keras Dense, its gradients against its masks, its gates against their closed forms."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers.masked_dense import MaskedDense
from mtlzoo.optimizers import LazyAdam

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype("float32")
DISJOINT = np.zeros((2, 6, 4), "float32")
DISJOINT[0, :, :2] = DISJOINT[1, :, 2:] = 1.0
LEARNED = [{"estimator": "hard_concrete"}, {"estimator": "straight_through"}]
KINDS = [*LEARNED, {"mask": "fixed"}]


def built(units=4, num_tasks=2, width=6, **arguments) -> MaskedDense:
    layer = MaskedDense(units, num_tasks, **arguments)
    layer.build((None, width))
    layer.bias.assign(RNG.normal(size=(units,)))
    return layer


def set_log_alpha(layer: MaskedDense, log_alpha) -> None:
    layer.gates.assign(np.broadcast_to(log_alpha, layer.gates.shape) / layer.gate_scale)


def mixed_log_alpha() -> np.ndarray:
    """Some gates shut, some half open, some open."""
    return np.linspace(-6.0, 6.0, 48).reshape(2, 6, 4)


def kernel_gradients(layer: MaskedDense, inputs=X) -> list[np.ndarray]:
    """What each task's loss sends to the kernel."""
    with tf.GradientTape(persistent=True) as tape:
        losses = [tf.reduce_sum(h**2) for h in layer(inputs, training=True)]
    return [tape.gradient(loss, layer.kernel.value).numpy() for loss in losses]


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("in_graph", [False, True])
def test_open_masks_make_it_dense_for_every_task(num_tasks, in_graph):
    layer = built(num_tasks=num_tasks, mask="fixed", activation="relu")
    dense = keras.layers.Dense(4, activation="relu")
    dense.build((None, 6))
    dense.set_weights([layer.kernel.numpy(), layer.bias.numpy()])
    shared, own = X, [X + t for t in range(num_tasks)]
    for inputs, of_task in ((shared, [X] * num_tasks), (own, own)):
        outputs = (tf.function(layer) if in_graph else layer)(inputs)
        assert len(outputs) == num_tasks
        for h, x in zip(outputs, of_task, strict=True):
            np.testing.assert_array_equal(h, (tf.function(dense) if in_graph else dense)(x))


@pytest.mark.parametrize("training", [False, True])
def test_each_task_uses_its_own_connections(training):
    layer = built(num_tasks=3, mask="fixed", activation="tanh")
    masks = RNG.integers(0, 2, (3, 6, 4))
    layer.set_masks(masks)
    outputs = layer([X, X + 1, X + 2], training=training)
    for t in range(3):
        expected = np.tanh((X + t) @ (layer.kernel.numpy() * masks[t]) + layer.bias.numpy())
        np.testing.assert_allclose(outputs[t], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_masked_connections_are_exactly_zero():
    layer = built(mask="fixed", activation="tanh")
    masks = RNG.integers(0, 2, (2, 6, 4))
    layer.set_masks(masks)
    for gradient, mask in zip(kernel_gradients(layer), masks, strict=True):
        np.testing.assert_array_equal(gradient != 0.0, mask != 0)


def test_disjoint_masks_have_disjoint_gradients():
    layer = built(mask="fixed")
    layer.set_masks(DISJOINT)
    first, second = kernel_gradients(layer)
    assert np.all(first[:, :2] != 0)
    assert np.all(second[:, 2:] != 0)
    assert not np.any(first[:, 2:])
    assert not np.any(second[:, :2])


@pytest.mark.parametrize("arguments", LEARNED)
def test_shut_gates_pass_no_gradient_to_the_kernel(arguments):
    layer = built(**arguments)
    set_log_alpha(layer, np.where(DISJOINT, 30.0, -30.0))
    np.testing.assert_array_equal(layer.masks(), DISJOINT)
    for gradient, mask in zip(kernel_gradients(layer), DISJOINT, strict=True):
        np.testing.assert_array_equal(gradient != 0.0, mask != 0)


@pytest.mark.parametrize("optimizer", [LazyAdam, keras.optimizers.Adam])
def test_connections_masked_for_every_task_do_not_move(optimizer):
    layer = built(mask="fixed", activation="tanh")
    masks = RNG.integers(0, 2, (2, 6, 4))
    layer.set_masks(masks)
    before, adam = layer.kernel.numpy(), optimizer(0.1)
    for step in range(5):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_mean((h - 1.0) ** 2) for h in layer(X[step : step + 20], training=True))
        weights = layer.trainable_variables
        adam.apply(tape.gradient(loss, [w.value for w in weights]), weights)
    np.testing.assert_array_equal(layer.kernel.numpy() != before, masks.any(axis=0))
    np.testing.assert_array_equal(layer.masks(), masks)


def test_hard_concrete_is_open_as_often_as_its_closed_form_says():
    values = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 3.0])
    layer = MaskedDense(4000, 1, estimator="hard_concrete", seed=1)
    layer.build((None, 6))
    set_log_alpha(layer, values[None, :, None])
    drawn = layer._training_masks().numpy()[0]
    expected = 1.0 / (1.0 + np.exp(-(values - 2 / 3 * np.log(0.1 / 1.1))))
    error = np.sqrt(expected * (1 - expected) / 4000)
    np.testing.assert_array_less(np.abs((drawn > 0).mean(axis=1) - expected), 4 * error)
    # z = 1 where (log u - log(1 - u) + log_alpha) / beta >= log(1.0 / 0.1 * 1.1): the mirror image.
    wide_open = 1.0 / (1.0 + np.exp(-(values + 2 / 3 * np.log(0.1 / 1.1))))
    error = np.sqrt(wide_open * (1 - wide_open) / 4000)
    np.testing.assert_array_less(np.abs((drawn == 1).mean(axis=1) - wide_open), 4 * error)
    np.testing.assert_allclose(layer.expected_density(), [expected.mean()], rtol=1e-5)


def test_hard_concrete_by_its_formula():
    layer = built(estimator="hard_concrete", seed=3)
    set_log_alpha(layer, mixed_log_alpha())
    tiny = keras.config.epsilon()
    u = keras.random.uniform((2, 6, 4), tiny, 1.0 - tiny, seed=keras.random.SeedGenerator(3)).numpy().astype("float64")
    s = 1.0 / (1.0 + np.exp(-(np.log(u) - np.log(1 - u) + mixed_log_alpha()) * 1.5))
    masks = np.clip(1.2 * s - 0.1, 0.0, 1.0)
    outputs = layer(X, training=True)
    for t in range(2):
        expected = X @ (layer.kernel.numpy() * masks[t]) + layer.bias.numpy()
        np.testing.assert_allclose(outputs[t], expected, rtol=1e-3, atol=1e-4)
    deterministic = np.clip(1.2 / (1.0 + np.exp(-mixed_log_alpha())) - 0.1, 0.0, 1.0)
    np.testing.assert_allclose(layer.masks(), deterministic, atol=1e-6)


def test_straight_through_is_binary_with_the_gradient_of_its_probability():
    layer = built(estimator="straight_through")
    set_log_alpha(layer, mixed_log_alpha())
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer._training_masks())
    probability = 1.0 / (1.0 + np.exp(-mixed_log_alpha()))
    gradient = tape.gradient(total, layer.gates.value)
    np.testing.assert_allclose(gradient, 10.0 * probability * (1 - probability), rtol=1e-4)
    np.testing.assert_array_equal(layer._training_masks(), mixed_log_alpha() > 0)
    np.testing.assert_array_equal(layer.masks(), mixed_log_alpha() > 0)
    np.testing.assert_allclose(layer.expected_density(), (mixed_log_alpha() > 0).mean(axis=(1, 2)))


@pytest.mark.parametrize("arguments", LEARNED)
def test_inference_is_deterministic_and_uses_the_masks(arguments):
    layer = built(**arguments)
    set_log_alpha(layer, mixed_log_alpha())
    masks = layer.masks().numpy()
    for _ in range(2):
        for h, mask in zip(layer(X), masks, strict=True):
            expected = X @ (layer.kernel.numpy() * mask) + layer.bias.numpy()
            np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_graph", [False, True])
def test_noise_is_seeded_and_fresh_at_every_step(in_graph):
    runs = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(0)
        layer = MaskedDense(4, 2, estimator="hard_concrete", seed=seed)
        layer.build((None, 6))
        call = tf.function(lambda x, layer=layer: layer(x, training=True)) if in_graph else layer
        runs.append([np.stack(call(X) if in_graph else call(X, training=True)) for _ in range(2)])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.any(runs[0][0] != runs[2][0])
    assert np.any(runs[0][0] != runs[0][1])
    assert np.any(runs[0][0][0] != runs[0][0][1])  # tasks differ


@pytest.mark.parametrize("arguments", LEARNED)
def test_each_task_teaches_its_own_gates(arguments):
    layer = built(units=40, seed=1, **arguments)
    with tf.GradientTape() as tape:
        click, _ = layer(X, training=True)
        loss = tf.reduce_mean(click**2)
    gradient = tape.gradient(loss, layer.gates.value).numpy()
    assert np.mean(gradient[0] != 0) > 0.25
    assert not np.any(gradient[1])


@pytest.mark.parametrize(("estimator", "open_at_start"), [("hard_concrete", 0.8), ("straight_through", 1.0)])
def test_density_at_the_start_and_its_penalty(estimator, open_at_start):
    layer = built(estimator=estimator, initial_density=0.8, l0=0.01)
    np.testing.assert_allclose(layer.expected_density(), [open_at_start] * 2, rtol=1e-5)
    layer(X, training=True)
    layer(X, training=True)  # a second call costs nothing more
    (penalty,) = layer.losses
    assert float(penalty) == pytest.approx(0.01 * 0.8 * 48, rel=1e-5)
    assert built(estimator=estimator).losses == []


def fitted(x, y, l0: float, arguments) -> MaskedDense:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    layer = MaskedDense(1, 2, l0=l0, kernel_initializer="ones", **arguments)
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.Adam(0.02), loss=["mse", "mse"])
    model.fit(x, y, batch_size=64, epochs=10, verbose=0)
    return layer


@pytest.mark.parametrize("arguments", LEARNED)
def test_the_penalty_closes_connections_in_fit(arguments):
    x, y = np.zeros((512, 6), "float32"), [np.zeros((512, 1))] * 2  # nothing but the penalty moves a gate
    np.testing.assert_array_equal(fitted(x, y, 0.0, arguments).gates, built(units=1, **arguments).gates)
    np.testing.assert_array_less(fitted(x, y, 0.01, arguments).expected_density(), 0.1)


@pytest.mark.parametrize("arguments", LEARNED)
def test_fit_leaves_open_what_a_task_needs(arguments):
    x = RNG.normal(size=(512, 6)).astype("float32")
    y = [3 * x[:, :1], 2 * x[:, 5:]]  # task 0 needs input 0, task 1 needs input 5
    masks = fitted(x, y, 0.05, arguments).masks().numpy()[:, :, 0]
    np.testing.assert_array_equal(masks > 0, [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("arguments", KINDS)
def test_mixed_precision(policy, arguments):
    layer = MaskedDense(4, 2, activation="relu", dtype=policy, **arguments)
    outputs = tf.function(lambda x: layer([x, x], training=True))(X)
    half = keras.dtype_policies.get(policy).compute_dtype
    assert all(h.dtype == half for h in outputs)
    assert all(np.all(np.isfinite(np.array(h, "float32"))) for h in outputs)
    assert all(w.dtype == "float32" for w in layer.weights)
    assert layer.masks().dtype == layer.expected_density().dtype == tf.float32
    if arguments == {"mask": "fixed"}:
        dense = keras.layers.Dense(4, activation="relu", dtype=policy)
        dense.build((None, 6))
        dense.set_weights([layer.kernel.numpy(), layer.bias.numpy()])
        np.testing.assert_array_equal(np.array(outputs[1], "float32"), np.array(dense(X), "float32"))


@pytest.mark.parametrize("arguments", KINDS)
@pytest.mark.parametrize("num_tasks", [2, 5])
def test_save_load_and_clone(tmp_path, arguments, num_tasks):
    inputs = keras.Input((6,))
    first = MaskedDense(4, num_tasks, activation="gelu", kernel_initializer="he_normal", seed=4, **arguments)
    second = MaskedDense(3, num_tasks, initial_density=0.7, gate_scale=2.0, **arguments)
    hidden = first(inputs)
    model = keras.Model(inputs, second(hidden))
    assert model.output_shape == [(None, 3)] * num_tasks
    assert first.compute_output_shape((None, 6)) == [(None, 4)] * num_tasks
    assert second.compute_output_shape([(7, 4)] * num_tasks) == [(7, 3)] * num_tasks
    if first.mask == "fixed":
        first.set_masks(RNG.integers(0, 2, (num_tasks, 6, 4)).astype(bool))
    else:
        first.gates.assign(RNG.normal(size=first.gates.shape))
    model.save(tmp_path / "m.keras")
    again, clone = keras.models.load_model(tmp_path / "m.keras"), keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (again, clone):
        assert [layer.get_config() for layer in other.layers[1:]] == [layer.get_config() for layer in model.layers[1:]]
        np.testing.assert_array_equal(other.layers[1].masks(), first.masks())
        np.testing.assert_array_equal(np.stack(other(X)), np.stack(model(X)))


def test_masks_that_do_not_fit_are_named():
    layer = built(mask="fixed", name="trunk_0")
    with pytest.raises(ValueError, match=r"trunk_0: masks must have shape \(2, 6, 4\), has shape \(6, 4\)"):
        layer.set_masks(DISJOINT[0])
    with pytest.raises(ValueError, match="trunk_0: masks must hold 0 and 1 only, holds 0.5"):
        layer.set_masks(DISJOINT / 2)
    np.testing.assert_array_equal(layer.masks(), np.ones((2, 6, 4)))
    with pytest.raises(ValueError, match="call it once"):
        MaskedDense(4, 2, mask="fixed").set_masks(DISJOINT)
    with pytest.raises(ValueError, match="call it once"):
        MaskedDense(4, 2).expected_density()
    with pytest.raises(ValueError, match="set_masks needs mask='fixed'.*'learned'"):
        built().set_masks(DISJOINT)
    with pytest.raises(ValueError, match="log_alpha needs mask='learned'.*'fixed'"):
        layer.log_alpha()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "units.*0"),
        ({"num_tasks": 0}, "num_tasks.*0"),
        ({"mask": "lottery"}, "mask.*'lottery'"),
        ({"estimator": "reinforce"}, "estimator.*'reinforce'"),
        ({"l0": -1.0}, "l0.*-1.0"),
        ({"l0": 0.1, "mask": "fixed"}, "l0.*mask='fixed'.*0.1"),
        ({"initial_density": 1.0}, "initial_density.*1.0"),
        ({"initial_density": 0.5}, "above 0.5 with estimator='straight_through', is 0.5: every connection would start"),
        ({"initial_density": 0.0, "estimator": "hard_concrete"}, "initial_density.*0.0"),
        ({"gate_scale": 0.0}, "gate_scale.*0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedDense(**{"units": 4, "num_tasks": 2, **arguments})


@pytest.mark.parametrize(
    "inputs", [X[0], X[None], [X], [X, X, X], [X, X[:, :5]], [X[0], X[0]]], ids=lambda x: str(np.shape(x[0]))
)
def test_bad_inputs_are_named(inputs):
    with pytest.raises(ValueError, match="trunk_0: the input must be one tensor .* or a list of 2"):
        MaskedDense(4, 2, name="trunk_0")(inputs)
    with pytest.raises(ValueError, match="trunk_0: the input must be one tensor .* or a list of 2"):
        built(name="trunk_0")(inputs)
