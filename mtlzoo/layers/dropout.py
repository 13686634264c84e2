"""Dropout from eight random bits an element."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo import backend


@keras.saving.register_keras_serializable(package="mtlzoo")
class Dropout(keras.layers.Dropout):
    """Sets elements to 0 at random in training, and scales the others so that the mean stays.

        output = keep x / (1 - p),   keep = [byte >= 256 p],   p = round(256 rate) / 256

    One random byte decides on an element, where `keras.layers.Dropout` draws four: it costs about a third on a CPU
    (docs/speed.md). The price is that rates are multiples of 1/256: 0.1 becomes 26/256 = 0.1016. The expected output
    is the input, exactly.

    Args:
        rate: Share of elements to drop, in [0, 1). Above 0 it is at least 1/256 and at most 255/256.
        seed: Start of the random stream; `None` takes one from Keras's global seed.
        **kwargs: Of `keras.layers.Layer`.

    Input and output: `[..., D]`, floats.

    Raises:
        ValueError: `rate` is outside [0, 1), or `noise_shape` is given.

    Example:
        >>> dropped = Dropout(0.5, seed=0)(np.ones((1000, 8), "float32"), training=True)
        >>> sorted(set(dropped.numpy().ravel().tolist()))
        [0.0, 2.0]

    Source: Srivastava et al., "Dropout" (JMLR 2014), in the inverted form that Keras has; bytes are our design.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        if kwargs.pop("noise_shape", None) is not None:
            raise ValueError("Dropout has no noise_shape; use keras.layers.Dropout")
        super().__init__(checked_rate(rate), seed=seed, **kwargs)
        self.threshold = min(max(round(256 * rate), 1), 255) if rate else 0

    def call(self, inputs: Any, training: bool | None = False) -> Any:
        """Drops elements in training; else the input."""
        if not training or not self.threshold:
            return inputs
        drawn = backend.random_bytes(ops.shape(inputs), self.seed_generator.next())
        keep = ops.cast(drawn >= self.threshold, inputs.dtype)
        return inputs * (keep * (256.0 / (256 - self.threshold)))


def checked_rate(rate: float) -> float:
    """A dropout rate.

    Raises:
        ValueError: It is outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, is {rate!r}")
    return float(rate)
