"""A learned scale and shift of each input."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="mtlzoo")
class FeatureScale(keras.layers.Layer):
    """Scales and shifts each input by numbers that are learned: `output = gamma x + beta`, the identity at the start.

    Args:
        **kwargs: Of `keras.layers.Layer`.

    Input and output: `[..., D]`.

    Example:
        >>> FeatureScale()(np.array([[1.0, 2.0]], "float32")).numpy().tolist()
        [[1.0, 2.0]]

    Source: the released code of Bi et al. (DTN, arXiv 2408.11611): a batch normalization that always uses its initial
    statistics is this map, up to the constant 1 / sqrt(1.001), which gamma absorbs.
    """

    def build(self, input_shape: Any) -> None:
        """Creates gamma and beta."""
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="beta")

    def call(self, inputs: Any) -> Any:
        """Scales and shifts."""
        return inputs * self.gamma + self.beta

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The input's shape."""
        return tuple(input_shape)
