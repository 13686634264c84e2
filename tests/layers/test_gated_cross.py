"""Gated crosses by hand and by numpy; networks against chains of single layers, copies against single networks."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from round_trip import assert_saved_and_cloned

from mtlzoo.layers.gated_cross import GatedCross, GatedCrossNetwork

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype("float32")
X_L = RNG.normal(size=(6, 5)).astype("float32")


def randomised(layer, inputs=X):
    """The layer, built, with random weights, biases too."""
    layer(inputs)
    for weight in layer.weights:
        weight.assign(RNG.normal(scale=0.5, size=weight.shape))
    return layer


def by_formula(x_0, x_l, kernel, bias):
    """The gated cross in numpy."""
    cross, gate = np.split(kernel, 2, axis=1)
    return x_0 * (x_l @ cross + bias) / (1 + np.exp(-(x_l @ gate))) + x_l


def network_by_formula(network, x, copy=0):
    """One copy in numpy."""
    x_l, width = x, x.shape[1]
    kernels = [network.kernels[0].numpy()[:, copy * 2 * width : (copy + 1) * 2 * width]]
    kernels += [kernel.numpy()[copy] for kernel in network.kernels[1:]]
    for kernel, bias in zip(kernels, network.biases, strict=True):
        x_l = by_formula(x, x_l, kernel, bias.numpy()[copy])
    if network.units is None:
        return x_l
    return x_l @ network.projection.numpy()[copy] + network.projection_bias.numpy()[copy]


def copied_into_single(network, copy):
    """A network of its own with the weights of one copy."""
    single = GatedCrossNetwork(network.num_layers, network.units)
    single(X)
    first = np.split(network.kernels[0].numpy(), network.copies, axis=1)[copy]
    single.set_weights([first, *(w.numpy()[copy : copy + 1] for w in network.weights[1:])])
    return single


def test_a_cross_by_hand():
    layer = GatedCross()
    layer.build((None, 2))
    # Crosses (3 + 0.5, 4 - 1) for x_l = (1, 2), gates sigmoid(0, log 3) = (1/2, 3/4).
    layer.kernel.assign([[1.0, 2.0, 0.0, np.log(3.0)], [1.0, 1.0, 0.0, 0.0]])
    layer.bias.assign([0.5, -1.0])
    out = layer((np.array([[2.0, -4.0]], "float32"), np.array([[1.0, 2.0]], "float32")))
    np.testing.assert_allclose(out, [[2.0 * 3.5 / 2.0 + 1.0, -4.0 * 3.0 * 0.75 + 2.0]], rtol=1e-6)


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_cross_by_its_formula(in_graph):
    layer = randomised(GatedCross())
    run = tf.function(layer) if in_graph else layer
    for x_0, x_l, inputs in ((X, X_L, (X, X_L)), (X, X, X)):
        expected = by_formula(x_0, x_l, layer.kernel.numpy(), layer.bias.numpy())
        np.testing.assert_allclose(run(inputs), expected, rtol=1e-5, atol=1e-5)


def test_without_gate_weights_it_is_the_cross_of_dcn_v2_at_half_strength():
    layer = randomised(GatedCross())
    layer.kernel.assign(layer.kernel.numpy() * ([1.0] * 5 + [0.0] * 5))
    dcn_v2 = keras.layers.Dense(5)
    dcn_v2.build((None, 5))
    dcn_v2.set_weights([layer.kernel.numpy()[:, :5], layer.bias.numpy()])
    np.testing.assert_allclose(layer((X, X_L)), X * dcn_v2(X_L) / 2 + X_L, rtol=1e-5, atol=1e-5)


def test_zero_crosses_are_the_identity():
    network = GatedCrossNetwork(3, units=None, kernel_initializer="zeros")
    np.testing.assert_array_equal(network(X), X)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("copies", [None, 1, 3])
@pytest.mark.parametrize(("num_layers", "units"), [(1, 4), (3, 4), (2, None)])
def test_a_network_by_its_formula(num_layers, units, copies, in_graph):
    network = randomised(GatedCrossNetwork(num_layers, units, copies))
    out = (tf.function(network) if in_graph else network)(X)
    width = units or 5
    assert out.shape == network.compute_output_shape(X.shape) == ((6, width) if copies is None else (6, copies, width))
    for c in range(copies or 1):
        one = out if copies is None else out[:, c]
        np.testing.assert_allclose(one, network_by_formula(network, X, c), rtol=1e-4, atol=1e-4)


def test_a_network_is_a_chain_of_crosses():
    network = randomised(GatedCrossNetwork(3, units=None))
    x_l = X
    for kernel, bias in zip(network.kernels, network.biases, strict=True):
        cross = GatedCross()
        cross.build((None, 5))
        cross.set_weights([kernel.numpy().reshape(5, 10), bias.numpy().reshape(5)])
        x_l = cross((X, x_l))
    np.testing.assert_allclose(network(X), x_l, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_layers", "units"), [(1, 4), (3, 4), (2, None)])
def test_copies_are_networks_of_their_own(num_layers, units):
    network = randomised(GatedCrossNetwork(num_layers, units, copies=3))
    out = network(X)
    for c in range(3):
        np.testing.assert_allclose(out[:, c], copied_into_single(network, c)(X), rtol=1e-4, atol=1e-5)


def test_as_many_weights_as_the_released_code():
    network = GatedCrossNetwork()
    network.build((None, 23 * 16))
    assert network.count_params() == 2 * (2 * 368**2 + 368) + 368 * 256 + 256


def test_gradients_reach_every_weight_of_the_own_copy_only():
    network = randomised(GatedCrossNetwork(2, 4, copies=3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(X)[:, 1] ** 2)
    first, *rest = tape.gradient(loss, [w.value for w in network.weights])
    by_copy = [tf.reshape(first, (5, 3, 10)), *(tf.transpose(g, (1, 0, 2)) for g in rest)]
    for gradient in by_copy:
        assert np.all(gradient[:, 1] != 0)
        assert not np.any(gradient[:, 0])
        assert not np.any(gradient[:, 2])


@pytest.mark.parametrize("layer", [GatedCross(), GatedCrossNetwork(2, 60, 3), GatedCrossNetwork(2, 60)])
def test_kernels_start_different_with_their_own_fans(layer):
    layer.build((None, 40))
    kernels = [k.numpy() for k in ([layer.kernel] if isinstance(layer, GatedCross) else layer.kernels)]
    crosses = np.split(kernels[0], kernels[0].shape[1] // 40, axis=1)
    crosses += [half for kernel in kernels[1:] for pair in kernel for half in np.split(pair, 2, axis=1)]
    projections = [] if isinstance(layer, GatedCross) else list(layer.projection.numpy())
    for parts, limit in ((crosses, np.sqrt(6 / 80)), (projections, np.sqrt(6 / 100))):
        for i, part in enumerate(parts):
            assert 0.95 * limit < np.max(np.abs(part)) <= limit
            assert all(np.any(part != other) for other in parts[:i])


def test_a_seeded_initializer_still_gives_different_copies():
    network = GatedCrossNetwork(2, 4, copies=2, kernel_initializer=keras.initializers.GlorotUniform(seed=3))
    network.build((None, 5))
    second = np.concatenate(list(network.kernels[1].numpy()), axis=1)
    np.testing.assert_array_equal(second, network.kernels[0].numpy())  # a seed fixes a layer, as in keras
    parts = np.split(second, 4, axis=1)
    assert all(np.any(part != other) for i, part in enumerate(parts) for other in parts[:i])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    for layer in (GatedCross(dtype=policy), GatedCrossNetwork(2, 4, 3, dtype=policy)):
        randomised(layer)
        exact = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
        exact(X)
        exact.set_weights(layer.get_weights())
        out = tf.function(layer)(X)
        assert out.dtype == layer.compute_dtype == policy.removeprefix("mixed_")
        assert all(w.dtype == "float32" for w in layer.weights)
        scale = np.max(np.abs(exact(X)))
        np.testing.assert_allclose(tf.cast(out, "float32"), exact(X), atol=0.03 * scale)


def test_a_gate_wide_open_still_has_a_gradient_in_half_precision():
    layer = GatedCross(kernel_initializer="zeros", dtype="mixed_bfloat16")
    layer.build((None, 1))
    layer.kernel.assign([[1.0, 8.0]])  # 1 - sigmoid(8) is below the steps of bfloat16 at 1
    with tf.GradientTape() as tape:
        out = layer(np.ones((1, 1), "float32"))
    gradient = tape.gradient(out, layer.kernel.value)
    np.testing.assert_allclose(gradient[0, 1], np.exp(-8.0), rtol=0.02)


def test_save_load_and_clone(tmp_path):
    inputs = keras.Input((5,))
    single, cross = GatedCrossNetwork(1, None, kernel_initializer="he_normal"), GatedCross("he_normal")
    copies = GatedCrossNetwork(2, 4, 3, kernel_initializer="he_normal")
    model = keras.Model(inputs, copies(cross((inputs, single(inputs)))))
    assert model.output_shape == (None, 3, 4)
    assert_saved_and_cloned(model, X, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers.*0"),
        ({"units": 0}, "units.*0"),
        ({"copies": 0}, "copies.*0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatedCrossNetwork(**arguments)


def test_another_shape_is_refused():
    for layer in (GatedCross(), GatedCrossNetwork()):
        with pytest.raises(ValueError, match=r"\[batch, D\], has shape \(2, 3, 4\)"):
            layer(np.ones((2, 3, 4), "float32"))
    with pytest.raises(ValueError, match=r"one width.*5.*4"):
        GatedCross()((X, X[:, :4]))
    with pytest.raises(ValueError, match="two tensors"):
        GatedCross()((X, X, X))
