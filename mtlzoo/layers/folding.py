"""A masked network as the plain network that it is: masks multiplied into kernels. Arrays in, arrays out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np


def fold(
    kernels: Sequence[Any], biases: Sequence[Any], masks: Sequence[Any | None], multiple: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds the masks of one task into its kernels, and drops the neurons that this leaves dead.

        h_l = relu(h_{l-1} (W_l * M_l) + b_l),   l = 1 ... L;   the last layer has no relu

    After `W_l <- W_l * M_l`, two kinds of neurons of the layers before the last are dropped:

    - without an open incoming connection: it is `relu(b_l[j])` for every input, and the next layer takes that into its
      bias, `b_{l+1} <- b_{l+1} + relu(b_l[j]) W_{l+1}[j]`;
    - without an open outgoing connection.

    Dropping one can leave others dead: these go too, until every neuron that is left lies on a path of open connections
    from an input to an output. The function of the inputs stays the same. Inputs and outputs are never dropped. A layer
    of which all are dead keeps one.

    Args:
        kernels: Kernel `[H_{l-1}, H_l]` of each layer, at least one.
        biases: Bias `[H_l]` of each layer.
        masks: Mask `[H_{l-1}, H_l]` of each layer with values in [0, 1]; `None`: the layer is not masked.
        multiple: Layers keep so many dead neurons, with all connections closed, that their width is a multiple of this
            or what it was: some widths make a slower product than a larger one does.

    Returns:
        Kernel and bias of each layer, float64; the arguments are left as they are.

    Raises:
        ValueError: No layer, another number of biases or masks than of kernels, shapes that do not fit, a mask outside
            [0, 1], a weight that is not finite, a multiple below 1.

    Example:
        >>> hidden, head = np.array([[1.0, 2.0]]), np.array([[1.0], [3.0]])
        >>> fold([hidden, head], [np.array([0.0, 5.0]), np.array([0.5])], [np.array([[1.0, 0.0]]), None])
        [(array([[1.]]), array([0.])), (array([[1.]]), array([15.5]))]

    Source: our design.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, is {multiple!r}")
    layers = _masked(kernels, biases, masks)
    # Forwards: a constant neuron's share moves on, which leaves it without open outgoing connections.
    for (kernel, bias), (next_kernel, next_bias) in pairwise(layers):
        constant = np.all(kernel == 0.0, axis=0)
        next_bias += np.maximum(bias[constant], 0.0) @ next_kernel[constant]
        next_kernel[constant] = 0.0
    # Backwards: a neuron that is dropped may have been the last one that those before it went to.
    for i in reversed(range(len(layers) - 1)):
        (kernel, bias), (next_kernel, next_bias) = layers[i : i + 2]
        dead = np.all(next_kernel == 0.0, axis=1)
        kernel[:, dead], bias[dead] = 0.0, 0.0
        kept = _kept(dead, multiple)
        layers[i : i + 2] = [(kernel[:, kept], bias[kept]), (next_kernel[kept], next_bias)]
    return layers


def _kept(dead: np.ndarray, multiple: int) -> np.ndarray:
    """Indices of all neurons that are not dead, and of as many dead ones as the width asks for; at least one."""
    alive = int(np.count_nonzero(~dead))
    width = max(1, math.ceil(alive / multiple) * multiple)
    return np.sort(np.argsort(dead, kind="stable")[:width])


def _masked(
    kernels: Sequence[Any], biases: Sequence[Any], masks: Sequence[Any | None]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masked kernel and bias of each layer, as new arrays."""
    if not kernels or not len(kernels) == len(biases) == len(masks):
        raise ValueError(
            f"there must be one bias and one mask per kernel, and one kernel at least; there are {len(kernels)} "
            f"kernels, {len(biases)} biases and {len(masks)} masks"
        )
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (kernel, bias, mask) in enumerate(zip(kernels, biases, masks, strict=True)):
        weights, offsets = np.array(kernel, "float64"), np.array(bias, "float64")
        width = layers[-1][0].shape[1:] if layers else weights.shape[:1]
        if weights.ndim != 2 or weights.shape[:1] != width or weights.shape[1:] != offsets.shape:
            raise ValueError(
                f"layer {i}: the kernel must have shape [inputs, units] with as many inputs as the layer before has "
                f"units, and the bias [units]; they have shapes {weights.shape} and {offsets.shape}"
            )
        if not (np.all(np.isfinite(weights)) and np.all(np.isfinite(offsets))):
            raise ValueError(f"layer {i} holds a weight that is not finite: the training diverged; lower its rate")
        layers.append((weights if mask is None else weights * _checked(mask, weights.shape, i), offsets))
    return layers


def _checked(mask: Any, shape: tuple[int, ...], layer: int) -> np.ndarray:
    array = np.asarray(mask, "float64")
    if array.shape != shape:
        raise ValueError(f"mask {layer} must have shape {shape}, has shape {array.shape}")
    outside = array[~((array >= 0.0) & (array <= 1.0))]
    if outside.size:
        raise ValueError(f"mask {layer} must hold values in [0, 1], holds {outside[0]!s} ({outside.size} such values)")
    return array
