"""Weighing what one task has found by how likely another task's event is."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mtlzoo")
class TaskSensitiveGate(keras.layers.Layer):
    """Scales the outputs of another task's modules by that task's prediction.

        output = p values,   without detach;   output = stop_gradient(p) values,   with it

    Where a click is unlikely, little of what was found for the click reaches the conversion.

    Args:
        detach: Whether the loss of the task that reads the output leaves the prediction alone. Without it, that loss
            also trains the tower which made the prediction. Defaults to True.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `(values [B, ...], probability [B, 1])`. Output: the shape of the values, in the compute dtype.

    Raises:
        ValueError: The inputs are not a pair, or the probability is not `[B, 1]`.

    Example:
        >>> outputs, click = np.ones((2, 3, 4), "float32"), np.array([[0.0], [0.5]], "float32")
        >>> TaskSensitiveGate()((outputs, click))[:, 0, 0].numpy().tolist()
        [0.0, 0.5]

    Source: the task-sensitive network of Bi et al., "DTN: Deep Multiple Task-specific Feature Interactions Network for
    Multi-Task Recommendation" (arXiv 2408.11611), and its released code, which stops the gradient.
    """

    def __init__(self, detach: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.detach = bool(detach)

    def build(self, input_shape: Any) -> None:
        """Checks the shapes; there are no weights."""
        if len(input_shape) != 2 or len(input_shape[1]) != 2 or input_shape[1][1] != 1:
            raise ValueError(
                f"{self.name}: the input must be (values [batch, ...], probability [batch, 1]), has the shapes "
                f"{input_shape}"
            )

    def call(self, inputs: Any) -> Any:
        """Scales the values."""
        values, probability = inputs  # [B, ...], [B, 1]
        if self.detach:
            probability = ops.stop_gradient(probability)
        ones = (1,) * (len(values.shape) - 1)
        return values * ops.reshape(ops.cast(probability, values.dtype), (-1, *ones))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the values."""
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "detach": self.detach}
