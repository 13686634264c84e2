"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from mtlzoo.layers.dropout import Dropout, checked_rate

_NORMALIZATIONS = (None, "batch", "layer")


@keras.saving.register_keras_serializable(package="mtlzoo")
class MLP(keras.layers.Layer):
    """Hidden layers, each linear, then normalised (if asked), then activated, then dropped out (if asked).

        h_0 = x,   h_{l+1} = dropout(activation(norm(h_l W_l + b_l)))

    Args:
        units: Width of each layer; none makes the identity.
        activation: Activation of every layer.
        dropout: Dropout rate behind every layer, in [0, 1).
        normalization: `None`, `"batch"` or `"layer"`. With either, its own offset takes the place of the bias.
        kernel_initializer: Initializer of the kernels.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[..., D]`. Output: `[..., units[-1]]`, or the input where `units` is empty.

    Raises:
        ValueError: A width below 1, a rate outside [0, 1), an unknown normalisation.

    Example:
        >>> tower = MLP((64, 32), dropout=0.1)
        >>> tuple(tower(np.zeros((8, 100), "float32")).shape)
        (8, 32)

    Source: the usual building block.
    """

    def __init__(
        self,
        units: Sequence[int],
        activation: Any = "relu",
        dropout: float = 0.0,
        normalization: str | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = checked_units(units)
        self.activation = keras.activations.get(activation)
        self.dropout = checked_rate(dropout)
        if normalization not in _NORMALIZATIONS:
            raise ValueError(f"normalization must be None, 'batch' or 'layer', is {normalization!r}")
        self.normalization = normalization
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates the sublayers."""
        self.steps: list[keras.layers.Layer] = []
        shape = tuple(input_shape)
        for width in self.units:
            for step in self._hidden_layer(width):
                step.build(shape)
                shape = step.compute_output_shape(shape)
                self.steps.append(step)

    def _hidden_layer(self, width: int) -> list[keras.layers.Layer]:
        policy = self.dtype_policy
        linear = keras.layers.Dense(
            width,
            use_bias=self.normalization is None,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=policy,
        )
        steps = [linear]
        if self.normalization == "batch":
            steps.append(keras.layers.BatchNormalization(dtype=policy))
        if self.normalization == "layer":
            steps.append(keras.layers.LayerNormalization(dtype=policy))
        steps.append(keras.layers.Activation(self.activation, dtype=policy))
        if self.dropout:
            steps.append(Dropout(self.dropout, dtype=policy))
        return steps

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Runs the layers."""
        x = inputs  # [..., D]
        for step in self.steps:
            trains = isinstance(step, Dropout | keras.layers.BatchNormalization)
            x = step(x, training=training) if trains else step(x)
        return x  # [..., units[-1]]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[..., D]` to `[..., units[-1]]`."""
        return (*input_shape[:-1], self.units[-1] if self.units else input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "normalization": self.normalization,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def checked_units(units: Sequence[int]) -> tuple[int, ...]:
    """Layer widths as a tuple.

    Raises:
        ValueError: A width below 1.
    """
    widths = tuple(int(width) for width in units)
    if any(width < 1 for width in widths):
        raise ValueError(f"units must be widths of at least 1, are {widths}")
    return widths


def checked_width(layer: str, shape: Any) -> int:
    """D of an input `[B, D]`.

    Raises:
        ValueError: The input has another shape, or a width that is not known.
    """
    if len(shape) != 2 or shape[1] is None:
        raise ValueError(f"{layer}: the input must have shape [batch, D], has shape {tuple(shape)}")
    return int(shape[1])


def checked_count(name: str, value: int) -> int:
    """A number of things, or a width.

    Raises:
        ValueError: It is below 1.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1, is {value!r}")
    return int(value)
