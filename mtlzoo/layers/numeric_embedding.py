"""Embeddings of numbers: piecewise linear between knots, or periodic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mtlzoo.layers.mlp import checked_count


@keras.saving.register_keras_serializable(package="mtlzoo")
class PiecewiseLinearEmbedding(keras.layers.Layer):
    """A vector for each number, continuous in it and linear between knots; every number has knots of its own.

        h_0 = min(x - k_1, 0),   h_i = clip((x - k_i) / (k_(i+1) - k_i), 0, 1),   h_n = max(x - k_n, 0)
        e = b + sum_i h_i w_i        for knots k_1 < ... < k_n

    The vectors w_0 ... w_n are what e gains over each piece, so that what is learned of one piece moves all beyond it:
    neighbours stay alike, where buckets each learn on their own. Where the slope of e may change are the knots; with
    the edges of quantile buckets there are as many impressions in each piece.

    Args:
        knots: For each number its knots, at least one, rising.
        units: Width of the vectors.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, M]`, floats, with as many columns as there are lists of knots. Output: `[B, M, units]`.

    Raises:
        ValueError: No knots, knots that do not rise, a width below 1, an input of another shape.

    Example:
        >>> layer = PiecewiseLinearEmbedding([[0.0, 1.0, 5.0]], units=4)
        >>> tuple(layer(np.array([[0.5], [7.0]], "float32")).shape)
        (2, 1, 4)

    Source: Gorishniy, Rubachev and Babenko, "On embeddings for numerical features in tabular deep learning"
    (NeurIPS 2022, arXiv 2203.05556), section 3.2, followed by a linear layer for each number. There the first and the
    last piece end at the lowest and the highest number of the training data; here they go on.
    """

    def __init__(self, knots: Sequence[Sequence[float]], units: int, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # half a float's digits do not tell close knots apart
        self.knots = tuple(tuple(float(knot) for knot in of_number) for of_number in knots)
        self.units = checked_count("units", units)
        if not self.knots:
            raise ValueError("knots must name those of one number at least, is empty")
        for column, of_number in enumerate(self.knots):
            rising = all(a < b for a, b in zip(of_number, of_number[1:], strict=False))
            if not of_number or not rising:
                raise ValueError(f"knots of column {column} must be at least one, and rise; are {list(of_number)[:8]}")
        self._pieces = _pieces(self.knots)

    def build(self, input_shape: Any) -> None:
        """Creates w and b."""
        _check_numbers(self.name, input_shape, len(self.knots))
        pieces = self._pieces[0].shape[1]
        bound = 1.0 / math.sqrt(pieces)
        self.kernel = self.add_weight(
            shape=(len(self.knots), pieces, self.units),
            initializer=keras.initializers.RandomUniform(-bound, bound),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(len(self.knots), self.units), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        """Embeds the numbers."""
        start, slope, low, high = self._pieces
        h = ops.clip((inputs[:, :, None] - start) * slope, low, high)  # [B, M, n + 1]
        return _linear(h, self.kernel, self.bias, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, M]` to `[B, M, units]`."""
        return (input_shape[0], len(self.knots), self.units)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "knots": [list(k) for k in self.knots], "units": self.units}


@keras.saving.register_keras_serializable(package="mtlzoo")
class PeriodicEmbedding(keras.layers.Layer):
    """A vector for each number, of waves whose frequencies are learned; every number has frequencies of its own.

        e = relu(b + W [sin(2 pi c x), cos(2 pi c x)]),        c ~ N(0, sigma^2) at the start

    Needs no knots. How fine it resolves a number depends on sigma: a distance of 1 / sigma is about one turn.

    Args:
        units: Width of the vectors.
        frequencies: Number of frequencies c of each number.
        sigma: Deviation of the frequencies at the start, in turns per unit of the number. For standardised numbers
            0.01 to 1 is usual.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, M]`, floats. Output: `[B, M, units]`.

    Raises:
        ValueError: A width or a number of frequencies below 1, sigma not above 0, an input of another shape.

    Example:
        >>> tuple(PeriodicEmbedding(units=4)(np.zeros((2, 3), "float32")).shape)
        (2, 3, 4)

    Source: Gorishniy, Rubachev and Babenko, "On embeddings for numerical features in tabular deep learning"
    (NeurIPS 2022, arXiv 2203.05556), section 3.3, followed by a linear layer for each number and ReLU ("PLR").
    """

    def __init__(self, units: int, frequencies: int = 16, sigma: float = 0.1, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # angles need all digits of a float
        self.units = checked_count("units", units)
        self.frequencies = checked_count("frequencies", frequencies)
        self.sigma = float(sigma)
        if not self.sigma > 0.0:
            raise ValueError(f"sigma must be above 0, is {sigma!r}")

    def build(self, input_shape: Any) -> None:
        """Creates c, W and b."""
        numbers = _check_numbers(self.name, input_shape)
        bound = 1.0 / math.sqrt(2 * self.frequencies)
        self.turns = self.add_weight(
            shape=(numbers, self.frequencies),
            initializer=keras.initializers.RandomNormal(0.0, self.sigma),
            autocast=False,
            name="frequencies",
        )
        self.kernel = self.add_weight(
            shape=(numbers, 2 * self.frequencies, self.units),
            initializer=keras.initializers.RandomUniform(-bound, bound),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(numbers, self.units), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        """Embeds the numbers."""
        angle = 2.0 * math.pi * inputs[:, :, None] * self.turns  # [B, M, frequencies]
        waves = ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
        return ops.relu(_linear(waves, self.kernel, self.bias, self.compute_dtype))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, M]` to `[B, M, units]`."""
        return (*input_shape, self.units)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        own = {"units": self.units, "frequencies": self.frequencies, "sigma": self.sigma}
        return {**super().get_config(), **own}


def _pieces(knots: tuple[tuple[float, ...], ...]) -> tuple[np.ndarray, ...]:
    """Start, slope, lowest and highest value of each piece `[M, most knots + 1]`; pieces that a number lacks stay 0."""
    shape = (len(knots), max(map(len, knots)) + 1)
    start, slope, low, high = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for column, of_number in enumerate(knots):
        k, last = np.array(of_number), len(of_number)
        start[column, 0], slope[column, 0], low[column, 0] = k[0], 1.0, -np.inf
        start[column, 1:last], slope[column, 1:last], high[column, 1:last] = k[:-1], 1.0 / np.diff(k), 1.0
        start[column, last], slope[column, last], high[column, last] = k[-1], 1.0, np.inf
    return tuple(part.astype("float32") for part in (start, slope, low, high))


def _linear(found: Any, kernel: Any, bias: Any, dtype: str) -> Any:
    """A linear layer for each number: `[B, M, H]` to `[B, M, units]`."""
    h = ops.cast(ops.transpose(found, (1, 0, 2)), dtype)
    by_number = ops.matmul(h, ops.cast(kernel, dtype))  # [M, B, units]
    return ops.transpose(by_number, (1, 0, 2)) + ops.cast(bias, dtype)


def _check_numbers(layer: str, shape: Any, count: int | None = None) -> int:
    """M of an input `[B, M]`.

    Raises:
        ValueError: The input has another shape.
    """
    if len(shape) != 2 or shape[1] is None or count not in (None, shape[1]):
        wanted = "M" if count is None else count
        raise ValueError(f"{layer}: the input must have shape [batch, {wanted}], has shape {tuple(shape)}")
    return int(shape[1])
