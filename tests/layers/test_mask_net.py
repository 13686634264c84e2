"""Mask blocks by numpy and as Keras layers; networks against blocks put together, copies against single networks."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from round_trip import assert_saved_and_cloned

from mtlzoo.layers.mask_net import MaskBlock, MaskNet

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype("float32")
H = RNG.normal(size=(6, 3)).astype("float32")
KINDS = [("parallel", ()), ("parallel", (4,)), ("serial", ()), ("serial", (4, 2))]


def randomised(layer, inputs=X):
    """The layer, built, with random weights, biases too."""
    layer(inputs)
    for weight in layer.weights:
        weight.assign(RNG.normal(scale=0.5, size=weight.shape))
    return layer


def relu(x):
    return np.maximum(x, 0)


def block_by_formula(e, h, weights):
    """A block in numpy, from its weights in their order."""
    w_1, b_1, w_2, b_2, w, b, gamma, beta = weights
    mask = relu(e @ w_1 + b_1) @ w_2 + b_2
    o = (h * mask) @ w + b
    normal = (o - o.mean(axis=1, keepdims=True)) / o.std(axis=1, keepdims=True)
    return relu(normal * gamma + beta)


def single_weights(network, copy=0):
    """Weights of one copy: those of every block, in numpy's shapes, and the MLP's."""
    copies, blocks, m = network.copies or 1, network.num_blocks, network.mask_units
    w_1 = network.aggregation_kernel.numpy().reshape(-1, blocks, copies, m)[:, :, copy]
    b_1 = network.aggregation_bias.numpy().reshape(blocks, copies, m)[:, copy]
    rest = [[w.numpy()[p] for w in level.weights] for level in network.levels for p in range(copy, level.parts, copies)]
    of_blocks = [[w_1[:, n], b_1[n], *rest[n]] for n in range(blocks)]
    mlp = [(k.numpy()[copy], b.numpy()[copy]) for k, b in zip(network.kernels, network.biases, strict=True)]
    return of_blocks, mlp


def network_by_formula(network, e, copy=0):
    """One copy in numpy."""
    blocks, mlp = single_weights(network, copy)
    if network.mode == "parallel":
        h = np.concatenate([block_by_formula(e, e, weights) for weights in blocks], axis=1)
    else:
        h = e
        for weights in blocks:
            h = block_by_formula(e, h, weights)
    for kernel, bias in mlp:
        h = relu(h @ kernel + bias)
    return h


def copied_into_single(network, copy):
    """A network of its own with the weights of one copy."""
    single = MaskNet.from_config({**network.get_config(), "copies": None})
    single(X)
    blocks, m, copies = network.num_blocks, network.mask_units, network.copies
    joint = [w.numpy().reshape(-1, blocks, copies, m)[:, :, copy] for w in network.weights[:2]]
    single.aggregation_kernel.assign(joint[0].reshape(-1, blocks * m))
    single.aggregation_bias.assign(joint[1].reshape(-1))
    stacked = [w for level in network.levels for w in level.weights] + network.kernels + network.biases
    targets = [w for level in single.levels for w in level.weights] + single.kernels + single.biases
    for target, weight in zip(targets, stacked, strict=True):
        target.assign(weight.numpy()[copy::copies])
    return single


def block_with(weights):
    """A `MaskBlock` with weights in numpy's shapes."""
    block = MaskBlock(weights[4].shape[1], weights[0].shape[1])
    block.build(((None, weights[0].shape[0]), (None, weights[4].shape[0])))
    block.set_weights([w.reshape(target.shape) for w, target in zip(weights, block.weights, strict=True)])
    return block


def test_a_block_by_hand():
    block = MaskBlock(units=2, mask_units=2)
    block.build((None, 2))
    # e = (1, -2): hidden relu(1, -2 + 5) = (1, 3), mask (1 + 3 + 1, 3 - 2) = (5, 1), e * mask = (5, -2).
    # (5, -2) W + b = (3 + 1, 5 + 1) = (4, 6), normalised (-1, 1).
    weights = ([[1, 0], [0, 1]], [0, 5], [[1, 0], [1, 1]], [1, -2], [[1, 1], [1, 0]], [1, 1], [2, 3], [2.5, -1])
    block.set_weights([np.array(w, "float32").reshape(t.shape) for w, t in zip(weights, block.weights, strict=True)])
    np.testing.assert_allclose(block(np.array([[1.0, -2.0]], "float32")), [[0.5, 2.0]], rtol=1e-5)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("h", [H, None])
def test_a_block_by_its_formula(h, in_graph):
    inputs = X if h is None else (X, h)
    block = randomised(MaskBlock(4, 7), inputs)
    weights = [w.numpy().reshape(w.shape[-2:]) for w in block.weights]
    expected = block_by_formula(X, X if h is None else h, weights)
    np.testing.assert_allclose((tf.function(block) if in_graph else block)(inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_mask_of_ones_leaves_a_normalised_hidden_layer():
    block = randomised(MaskBlock(4, 7, epsilon=1e-3), (X, H))
    block.hidden.mask_kernel.assign(np.zeros((1, 7, 3)))
    block.hidden.mask_bias.assign(np.ones((1, 1, 3)))
    dense, norm = keras.layers.Dense(4), keras.layers.LayerNormalization(epsilon=1e-3)
    norm(dense(H))
    _, _, kernel, bias, gamma, beta = [w.numpy()[0] for w in block.hidden.weights]
    dense.set_weights([kernel, bias[0]])
    norm.set_weights([gamma[0], beta[0]])
    np.testing.assert_allclose(block((X, H)), relu(norm(dense(H))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-1, 10.0])
def test_a_new_block_is_indifferent_to_the_scale_of_embeddings(scale):
    block = MaskBlock(8, 16)
    np.testing.assert_allclose(block(scale * X), block(X), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-2, 1e-1, 10.0])
def test_a_scale_of_embeddings_acts_as_another_epsilon(scale):
    # Biases are zeros: the output before LN grows with the square of the scale, its variance with the fourth power.
    block = MaskBlock(8, 16)
    other = MaskBlock(8, 16, epsilon=block.epsilon / scale**4)
    block(X), other(X)
    other.set_weights(block.get_weights())
    np.testing.assert_allclose(block(scale * X), other(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("copies", [None, 1, 3])
@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize(("mode", "units"), KINDS)
def test_a_network_by_its_formula(mode, units, num_blocks, copies, in_graph):
    network = randomised(MaskNet(num_blocks, 3, 7, units, mode, copies))
    out = (tf.function(network) if in_graph else network)(X)
    width = units[-1] if units else 3 * (num_blocks if mode == "parallel" else 1)
    assert out.shape == network.compute_output_shape(X.shape) == ((6, width) if copies is None else (6, copies, width))
    for c in range(copies or 1):
        one = out if copies is None else out[:, c]
        np.testing.assert_allclose(one, network_by_formula(network, X, c), rtol=1e-3, atol=1e-3)


def test_parallel_blocks_stand_side_by_side():
    network = randomised(MaskNet(3, 4, 7, units=()))
    blocks = [block_with(weights) for weights in single_weights(network)[0]]
    expected = np.concatenate([block(X) for block in blocks], axis=1)
    np.testing.assert_allclose(network(X), expected, rtol=1e-4, atol=1e-5)


def test_serial_blocks_stand_on_each_other():
    network = randomised(MaskNet(3, 4, 7, units=(), mode="serial"))
    first, second, third = [block_with(weights) for weights in single_weights(network)[0]]
    expected = third((X, second((X, first(X)))))
    np.testing.assert_allclose(network(X), expected, rtol=1e-4, atol=1e-5)


def test_of_one_block_both_modes_are_the_same():
    parallel, serial = randomised(MaskNet(1, 4, 7, (3,))), MaskNet(1, 4, 7, (3,), mode="serial")
    serial(X)
    serial.set_weights(parallel.get_weights())
    np.testing.assert_array_equal(parallel(X), serial(X))


@pytest.mark.parametrize(("mode", "units"), KINDS)
def test_copies_are_networks_of_their_own(mode, units):
    network = randomised(MaskNet(2, 3, 7, units, mode, copies=3))
    out = network(X)
    for c in range(3):
        np.testing.assert_allclose(out[:, c], copied_into_single(network, c)(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("embedding_dim", [16, 64])
def test_as_many_weights_as_the_released_code(embedding_dim):
    network, d = MaskNet(), 23 * embedding_dim
    network.build((None, d))
    block = (d * 256 + 256) + (256 * d + d) + (d * 128 + 128) + 2 * 128  # two layers of a mask, one hidden, LN
    assert network.count_params() == 2 * block + 2 * (256 * 256 + 256)


@pytest.mark.parametrize("mode", ["parallel", "serial"])
def test_gradients_reach_every_weight_of_the_own_copy_only(mode):
    network = randomised(MaskNet(2, 8, 16, (8,), mode, copies=3))
    weights = network.trainable_weights
    assert len(weights) == len(network.weights)
    with tf.GradientTape(persistent=True) as tape:
        losses = [tf.reduce_sum(network(X)[:, c] ** 2) for c in (0, 1, 2)]
    for c, loss in enumerate(losses):
        for weight, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
            parts = gradient.shape[0] if len(gradient.shape) == 3 else 6
            by_copy = gradient if len(gradient.shape) == 3 else tf.reshape(gradient, (-1, 6, 16))
            by_copy = np.moveaxis(by_copy, 0 if len(gradient.shape) == 3 else 1, 0).reshape(parts // 3, 3, -1)
            assert np.any(by_copy[:, c], axis=-1).all(), weight.path
            assert not np.any(np.delete(by_copy, c, axis=1)), weight.path


def test_kernels_start_different_with_their_own_fans():
    network = MaskNet(2, 30, 50, (60,), copies=3)
    network.build((None, 40))
    (level,) = network.levels
    kinds = [
        (np.split(network.aggregation_kernel.numpy(), 6, axis=1), 40 + 50),
        (list(level.mask_kernel.numpy()), 50 + 40),
        (list(level.kernel.numpy()), 40 + 30),
        (list(network.kernels[0].numpy()), 60 + 60),
    ]
    for kernels, fans in kinds:
        limit = np.sqrt(6 / fans)
        for i, kernel in enumerate(kernels):
            assert 0.95 * limit < np.max(np.abs(kernel)) <= limit
            assert all(np.any(kernel != other) for other in kernels[:i])


def test_a_seeded_initializer_still_gives_different_copies():
    network = MaskNet(1, 3, 7, (), copies=2, kernel_initializer=keras.initializers.GlorotUniform(seed=3))
    out = network(X)
    assert np.any(out[:, 0] != out[:, 1])
    again = MaskNet.from_config(network.get_config())
    np.testing.assert_array_equal(again(X), out)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("layer", [MaskBlock(8, 16), MaskNet(2, 8, 16, (4,), copies=3)])
def test_mixed_precision(layer, policy):
    small = 0.1 * X  # what a block normalises varies by 1e-5, and its square is out of float16's reach
    layer(small)
    half = type(layer).from_config({**layer.get_config(), "dtype": policy})
    half(small)
    half.set_weights(layer.get_weights())
    out = tf.function(half)(small)
    assert out.dtype == half.compute_dtype == policy.removeprefix("mixed_")
    assert all(w.dtype == "float32" for w in half.weights)
    np.testing.assert_allclose(tf.cast(out, "float32"), layer(small), atol=0.1)


@pytest.mark.parametrize(("mode", "units"), KINDS)
def test_save_load_and_clone(mode, units, tmp_path):
    inputs = keras.Input((5,))
    block = MaskBlock(3, 7, 1e-6, "he_normal")
    network = MaskNet(2, 3, 7, units, mode, 3, 1e-6, "he_normal")
    model = keras.Model(inputs, network(block((inputs, inputs))))
    assert model.output_shape == (None, *network.compute_output_shape((None, 3))[1:])
    randomised(model)
    assert_saved_and_cloned(model, X, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks.*0"),
        ({"block_units": 0}, "block_units.*0"),
        ({"mask_units": 0}, "mask_units.*0"),
        ({"units": (4, 0)}, r"units.*\(4, 0\)"),
        ({"mode": "both"}, "'parallel' or 'serial', is 'both'"),
        ({"copies": 0}, "copies.*0"),
        ({"epsilon": 0.0}, "epsilon.*0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskNet(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"units": 0}, "units.*0"), ({"mask_units": 0}, "mask_units.*0"), ({"epsilon": -1.0}, "epsilon.*-1.0")],
)
def test_bad_arguments_of_a_block_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskBlock(**arguments)


def test_another_shape_is_refused():
    wrong = np.ones((2, 3, 4), "float32")
    for layer, inputs in ((MaskBlock(), wrong), (MaskBlock(), (wrong[:, 0], wrong)), (MaskNet(), wrong)):
        with pytest.raises(ValueError, match=r"\[batch, D\], has shape \(2, 3, 4\)"):
            layer(inputs)
    with pytest.raises(ValueError, match="3 tensors"):
        MaskBlock()((X, X, X))
