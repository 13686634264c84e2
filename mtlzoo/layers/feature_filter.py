"""A gate on each input, read off all of them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo.layers.mlp import checked_count


@keras.saving.register_keras_serializable(package="mtlzoo")
class FeatureFilter(keras.layers.Layer):
    """Scales each input by a factor between 0 and 2 that depends on all inputs.

        output = x * 2 sigmoid(relu(x W_1 + b_1) W_2 + b_2)

    Biases start at 0, so that the factors start around 1. The sigmoid is computed in float32.

    Args:
        units: Width of the hidden layer.
        **kwargs: Of `keras.layers.Layer`.

    Input and output: `[B, D]`; the output is in the compute dtype.

    Raises:
        ValueError: A width below 1.

    Example:
        >>> tuple(FeatureFilter(16)(np.ones((8, 100), "float32")).shape)
        (8, 100)

    Source: the gate of Chang et al., "PEPNet" (KDD 2023, arXiv 2302.01115), Gate NU, here reading what it filters.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = checked_count("units", units)

    def build(self, input_shape: Any) -> None:
        """Creates the two layers."""
        width = input_shape[-1]
        self.hidden = keras.layers.Dense(self.units, activation="relu", dtype=self.dtype_policy)
        self.factors = keras.layers.Dense(width, dtype=self.dtype_policy)
        self.hidden.build(input_shape)
        self.factors.build((*input_shape[:-1], self.units))

    def call(self, inputs: Any) -> Any:
        """Filters."""
        opened = ops.sigmoid(ops.cast(self.factors(self.hidden(inputs)), "float32"))
        return inputs * ops.cast(2.0 * opened, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "units": self.units}
