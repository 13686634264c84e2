"""Binary masks by the size of weights: pruning, and how much two masks overlap. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_SCOPES = ("global", "layer")


def prune_by_magnitude(
    kernels: Sequence[Any], masks: Sequence[Any], rate: float, scope: str = "global"
) -> list[np.ndarray]:
    """One round of magnitude pruning.

        c = |w|_(k),   k = round(rate * n),   M_ij <- 0 where |w_ij| < c

    `|w|_(k)` is the entry of index k, counted from 0, among the n surviving weights in ascending order of size. So
    n - k of them survive; more where several weights are exactly as large as c, since those stay together. At least
    one survives, however small n is. A connection once cut stays cut.

    Args:
        kernels: Kernel of each layer, any shape, finite.
        masks: Mask of each layer, 0 or 1, of its kernel's shape.
        rate: Share of the surviving connections to cut, in [0, 1).
        scope: `"global"`: one c for all layers together (the paper). `"layer"`: each layer has its own n, k and c.

    Returns:
        The new mask of each layer, each with the dtype of the old one; the arguments are left as they are.

    Raises:
        ValueError: A rate outside [0, 1), an unknown scope, kernels and masks that do not match, a mask that is not 0
            or 1, a kernel that is not finite.

    Example:
        >>> prune_by_magnitude([np.array([[0.1, -3.0, 2.0, 0.2]])], [np.ones((1, 4), int)], rate=0.5)
        [array([[0, 1, 1, 0]])]

    Source: Xiao et al., "Neuron-Connection Sharing for Multi-Task Learning in Video Conversion Rate Prediction"
    (arXiv 2008.09872), as its released code prunes; scope `"layer"` is our design.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate must be at least 0 and below 1, is {rate!r}")
    if scope not in _SCOPES:
        raise ValueError(f"scope must be 'global' or 'layer', is {scope!r}")
    sizes, old = _checked_layers(kernels, masks)
    if scope == "layer":
        cuts = [_cut([size[mask != 0]], rate) for size, mask in zip(sizes, old, strict=True)]
    else:
        cuts = [_cut([size[mask != 0] for size, mask in zip(sizes, old, strict=True)], rate)] * len(old)
    return [np.where(size < cut, np.zeros_like(mask), mask) for size, mask, cut in zip(sizes, old, cuts, strict=True)]


def _cut(surviving: list[np.ndarray], rate: float) -> float:
    """The size below which connections are cut."""
    values = np.concatenate(surviving) if surviving else np.empty(0)
    if not values.size:
        return 0.0  # nothing is left to cut
    index = min(round(rate * values.size), values.size - 1)
    return np.partition(values, index)[index]


def _checked_layers(kernels: Sequence[Any], masks: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sizes of the weights, and masks, of each layer."""
    if len(kernels) != len(masks):
        raise ValueError(f"there must be one mask per kernel; there are {len(kernels)} kernels and {len(masks)} masks")
    sizes, checked = [], []
    for i, (kernel, mask) in enumerate(zip(kernels, masks, strict=True)):
        size = np.abs(np.asarray(kernel))
        if not np.all(np.isfinite(size)):
            raise ValueError(f"kernel {i} holds a value that is not finite: the training diverged; lower its rate")
        sizes.append(size)
        checked.append(checked_mask(mask, size.shape, f"mask {i}"))
    return sizes, checked


def checked_mask(mask: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A binary mask as an array.

    Args:
        mask: Array of booleans or numbers.
        shape: The shape that it must have.
        name: What the error message calls it.

    Returns:
        The mask, with its dtype.

    Raises:
        ValueError: It has another shape or a value that is neither 0 nor 1.
    """
    array = np.asarray(mask)
    if array.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, has shape {array.shape}")
    other = array[(array != 0) & (array != 1)]
    if other.size:
        raise ValueError(f"{name} must hold 0 and 1 only, holds {other[0]!s} ({other.size} such values)")
    return array


def pruning_rate(final_density: float, rounds: int) -> float:
    """The rate that, applied `rounds` times, leaves `final_density` of the connections.

        rate = 1 - final_density^(1 / rounds)

    Args:
        final_density: Share of connections to leave, in (0, 1].
        rounds: Number of prunings, at least 1.

    Returns:
        Share to cut in each round, in [0, 1).

    Raises:
        ValueError: A density outside (0, 1], a number of rounds below 1.

    Example:
        >>> round(pruning_rate(0.2, rounds=4), 4)
        0.3313

    Source: arXiv 2008.09872, as its released code prunes.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, is {rounds!r}")
    return 1.0 - _checked_density(final_density, "final_density") ** (1.0 / rounds)


def overlap(mask_a: Any, mask_b: Any) -> float:
    """Jaccard index of two masks: connections that both use, as a share of those that either uses.

        |A and B| / |A or B|

    Args:
        mask_a: Mask, 0 or 1, any shape.
        mask_b: Mask, 0 or 1, of the same shape.

    Returns:
        A number in [0, 1]; 0 where neither mask uses any connection.

    Raises:
        ValueError: Shapes that differ, a value that is neither 0 nor 1.

    Example:
        >>> overlap([1, 1, 0, 0], [0, 1, 1, 0])
        0.3333333333333333

    Source: Jaccard (1912).
    """
    a = checked_mask(mask_a, np.shape(mask_a), "mask_a") != 0
    b = checked_mask(mask_b, a.shape, "mask_b") != 0
    either = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / either) if either else 0.0


def independent_overlap(density_a: float, density_b: float) -> float:
    """The Jaccard index that large masks of these densities have when they are independent of each other.

        a b / (a + b - a b)

    Args:
        density_a: Share of connections that one mask uses, in (0, 1].
        density_b: Share of connections that the other uses, in (0, 1].

    Returns:
        A number in (0, 1]. `overlap` above it means that the tasks share more than chance would.

    Raises:
        ValueError: A density outside (0, 1].

    Example:
        >>> round(independent_overlap(0.2, 0.2), 3)
        0.111

    Source: our design.
    """
    a, b = _checked_density(density_a, "density_a"), _checked_density(density_b, "density_b")
    return a * b / (a + b - a * b)


def _checked_density(density: float, name: str) -> float:
    if not 0.0 < density <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, is {density!r}")
    return float(density)
