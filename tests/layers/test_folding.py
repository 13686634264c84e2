"""Folded networks against the masked ones that they come from, and their widths against a search for open paths."""

from __future__ import annotations

import numpy as np
import pytest

from mtlzoo.layers.folding import fold

RNG = np.random.default_rng(0)
WIDTHS = (30, 40, 24, 16, 2)
X = RNG.normal(size=(200, WIDTHS[0]))


def random_network(density: float, widths=WIDTHS):
    """Kernels, biases and masks, the last layer unmasked. Masks are fractions, 0 for 1 - density of the connections."""
    shapes = list(zip(widths, widths[1:], strict=False))
    kernels = [RNG.normal(size=shape) for shape in shapes]
    biases = [RNG.normal(size=width) for width in widths[1:]]
    masks = [RNG.random(shape) * (RNG.random(shape) < density) for shape in shapes[:-1]]
    return kernels, biases, [*masks, None]


def masked_output(kernels, biases, masks, x=X):
    """The definition."""
    for i, (kernel, bias, mask) in enumerate(zip(kernels, biases, masks, strict=True)):
        x = x @ (kernel if mask is None else kernel * mask) + bias
        x = np.maximum(x, 0.0) if i < len(kernels) - 1 else x
    return x


def folded_output(layers, x=X):
    return masked_output([kernel for kernel, _ in layers], [bias for _, bias in layers], [None] * len(layers), x)


def widths_of(layers) -> list[int]:
    return [len(bias) for _, bias in layers[:-1]]


def neurons_on_a_path(kernels, masks) -> list[int]:
    """For each hidden layer its neurons that a path of open connections leads to from an input and on to an output."""
    closed = [np.ones(kernel.shape) if mask is None else mask for kernel, mask in zip(kernels, masks, strict=True)]
    is_open = [(kernel * mask) != 0.0 for kernel, mask in zip(kernels, closed, strict=True)]

    def led_to(layer: int, j: int) -> bool:
        return layer < 0 or any(led_to(layer - 1, i) for i in np.flatnonzero(is_open[layer][:, j]))

    def leads_on(layer: int, j: int) -> bool:
        return layer == len(is_open) - 1 or any(leads_on(layer + 1, k) for k in np.flatnonzero(is_open[layer + 1][j]))

    hidden = range(len(is_open) - 1)
    return [sum(led_to(i, j) and leads_on(i, j) for j in range(is_open[i].shape[1])) for i in hidden]


@pytest.mark.parametrize("density", [1.0, 0.1, 0.05, 0.03])
def test_the_function_stays_and_only_neurons_on_an_open_path_are_left(density):
    dropped = 0
    for _ in range(10):
        network = random_network(density)
        layers = fold(*network)
        np.testing.assert_allclose(folded_output(layers), masked_output(*network), rtol=1e-12, atol=1e-12)
        expected = neurons_on_a_path(network[0], network[2])
        assert widths_of(layers) == [max(1, width) for width in expected]
        dropped += sum(WIDTHS[1:-1]) - sum(expected)
    assert (dropped > 0) == (density < 1.0)


def test_open_masks_change_nothing():
    kernels, biases, _ = random_network(1.0)
    layers = fold(kernels, biases, [np.ones(kernel.shape) for kernel in kernels])
    for (kernel, bias), before, bias_before in zip(layers, kernels, biases, strict=True):
        np.testing.assert_array_equal(kernel, before)
        np.testing.assert_array_equal(bias, bias_before)


def test_a_fold_by_hand():
    """Neuron 0 stays; 1 has no way in, and leads to 2 outputs; 2 has no way out; 3 is like 1 with a negative bias."""
    kernels = [np.ones((2, 4)), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])]
    first = np.array([[0.5, 0, 1, 0], [0, 0, 1, 0]])
    second = np.array([[1.0, 1], [1, 0.5], [0, 0], [1, 1]])
    ((kernel, bias), (head, offset)) = fold(kernels, [np.array([9.0, 10.0, 11.0, -12.0]), np.zeros(2)], [first, second])
    np.testing.assert_array_equal(kernel, [[0.5], [0.0]])
    np.testing.assert_array_equal(bias, [9.0])
    np.testing.assert_array_equal(head, [[1.0, 2.0]])
    np.testing.assert_array_equal(offset, [30.0, 20.0])


def test_dropping_one_neuron_drops_others_along_the_chain():
    kernels = [np.ones((1, 2)), np.ones((2, 2)), np.ones((2, 1))]
    biases = [np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0])]
    # The second neuron of the first layer is constant, and so is the second of the next, which it alone leads to.
    masks = [np.array([[1, 0]]), np.eye(2), None]
    (_, first), (_, second), (_, head) = fold(kernels, biases, masks)
    assert (first.tolist(), second.tolist(), head.tolist()) == ([1.0], [3.0], [11.0])
    # The same the other way: nothing leads on from the second neuron of the second layer.
    masks = [np.ones((1, 2)), np.eye(2), np.array([[1], [0]])]
    (_, first), (_, second), (_, head) = fold(kernels, biases, masks)
    assert (first.tolist(), second.tolist(), head.tolist()) == ([1.0], [3.0], [5.0])


@pytest.mark.parametrize("closed", [(0, 1, 2), (0,), (1,), (2,)])
def test_a_network_without_any_path_is_constant_and_keeps_one_neuron_per_layer(closed):
    kernels, biases, masks = random_network(1.0)
    for i in closed:
        masks[i] = np.zeros_like(masks[i])
    layers = fold(kernels, biases, masks)
    assert widths_of(layers) == [1, 1, 1]
    expected = masked_output(kernels, biases, masks)
    np.testing.assert_allclose(folded_output(layers), expected, rtol=1e-12)
    assert np.ptp(expected, axis=0).max() == 0.0


@pytest.mark.parametrize("multiple", [4, 16])
def test_widths_are_a_multiple_or_what_they_were(multiple):
    for density in (1.0, 0.1, 0.05):
        network = random_network(density, widths=(30, 45, 24, 3, 2))
        layers = fold(*network, multiple)
        alive = neurons_on_a_path(network[0], network[2])
        expected = [
            min(width, max(1, -(-n // multiple) * multiple)) for n, width in zip(alive, (45, 24, 3), strict=True)
        ]
        assert widths_of(layers) == expected
        np.testing.assert_allclose(folded_output(layers), masked_output(*network), rtol=1e-12, atol=1e-12)
        # What is there only for its width has no open connection, and keeps nothing before it alive.
        assert [int(kernel.any(axis=0).sum()) for kernel, _ in layers[:-1]] == alive


def test_arguments_are_left_alone():
    kernels, biases, masks = random_network(0.05)
    copies = [[None if a is None else a.copy() for a in arrays] for arrays in (kernels, biases, masks)]
    fold(kernels, biases, masks)
    for arrays, before in zip((kernels, biases, masks), copies, strict=True):
        for a, b in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_single_layer_is_only_masked():
    kernel, bias, mask = RNG.normal(size=(3, 2)), RNG.normal(size=2), np.array([[1, 0], [0, 0], [0.5, 0]])
    ((folded, offset),) = fold([kernel], [bias], [mask])
    np.testing.assert_array_equal(folded, kernel * mask)
    np.testing.assert_array_equal(offset, bias)


def test_bad_arguments_are_named():
    kernel, bias, mask = np.ones((2, 3)), np.zeros(3), np.ones((2, 3))
    with pytest.raises(ValueError, match="there are 1 kernels, 1 biases and 2 masks"):
        fold([kernel], [bias], [mask, mask])
    with pytest.raises(ValueError, match="one kernel at least; there are 0 kernels"):
        fold([], [], [])
    with pytest.raises(ValueError, match=r"layer 1: the kernel must have.*shapes \(2, 3\) and \(3,\)"):
        fold([kernel, kernel], [bias, bias], [None, None])
    with pytest.raises(ValueError, match=r"layer 0:.*shapes \(2, 3\) and \(2,\)"):
        fold([kernel], [np.zeros(2)], [None])
    with pytest.raises(ValueError, match=r"mask 0 must have shape \(2, 3\), has shape \(3, 2\)"):
        fold([kernel], [bias], [mask.T])
    with pytest.raises(ValueError, match=r"mask 0 must hold values in \[0, 1\], holds 1.5 \(6 such values\)"):
        fold([kernel], [bias], [mask * 1.5])
    with pytest.raises(ValueError, match="mask 0 must hold.*holds nan"):
        fold([kernel], [bias], [mask * np.nan])
    for weights, offsets in ((kernel * np.inf, bias), (kernel, bias * np.nan)):
        with pytest.raises(ValueError, match="layer 0 holds a weight that is not finite"):
            fold([weights], [offsets], [mask])
    with pytest.raises(ValueError, match="multiple must be at least 1, is 0"):
        fold([kernel], [bias], [mask], multiple=0)
