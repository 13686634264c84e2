"""What one task has found, handed on to the next in the funnel."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo.layers.per_part import PerPart


@keras.saving.register_keras_serializable(package="mtlzoo")
class InformationTransfer(keras.layers.Layer):
    """Adaptive information transfer: attention between a task's own features and those of the task before it.

        q = relu(p G + g)
        a_u = (u W_1) . (u W_2) / sqrt(k)          for u in {v, q}
        output = sum_u softmax_u(a)_u u W_3

    v `[B, k]` is the task's own, p `[B, k']` that of the task before. W_1, W_2 and W_3, `[k, k]`, have no bias and are
    applied to both as one matrix product. The softmax is computed in float32.

    Args:
        kernel_initializer: Initializer of each kernel; a seed given in it is varied among them.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `(v [B, k], p [B, k'])`. Output: `[B, k]` in the compute dtype.

    Raises:
        ValueError: The inputs are not two tensors of two dimensions.

    Example:
        >>> transfer = InformationTransfer()
        >>> tuple(transfer((np.ones((8, 32), "float32"), np.ones((8, 16), "float32"))).shape)
        (8, 32)

    Source: the transfer network and the AIT module of Xi et al., "Modeling the Sequential Dependence among Audience
    Multi-step Conversions with Multi-task Learning in Targeted Display Advertising" (AITM, KDD 2021).
    """

    def __init__(self, kernel_initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates the transfer and the joint kernel of the attention."""
        own, received = self._checked(input_shape)
        attention = PerPart(self.kernel_initializer.clone(), 3)
        self.transfer_kernel = self.add_weight(
            shape=(received, own), initializer=attention.of_part(3), name="transfer_kernel"
        )
        self.transfer_bias = self.add_weight(shape=(own,), initializer="zeros", name="transfer_bias")
        self.kernel = self.add_weight(shape=(own, 3 * own), initializer=attention, name="kernel")

    def _checked(self, shapes: Any) -> tuple[int, int]:
        """Widths of a task's own features and of the received ones."""
        if len(shapes) != 2 or any(len(shape) != 2 or shape[1] is None for shape in shapes):
            raise ValueError(f"{self.name}: the inputs must be (own [batch, k], received [batch, k']), are {shapes}")
        return int(shapes[0][1]), int(shapes[1][1])

    def call(self, inputs: Any) -> Any:
        """Transfers."""
        return self._attend(inputs)[0]

    def attention(self, inputs: Any) -> Any:
        """How much the output takes from what was received, float32 `[B]`: 0 nothing, 1 nothing but that."""
        # Outside of a call nothing casts the weights, so the inputs become what the weights are.
        return self._attend([ops.cast(x, self.variable_dtype) for x in inputs])[1][:, 1, 0]

    def _attend(self, inputs: Any) -> tuple[Any, Any]:
        own, received = inputs  # [B, k], [B, k']
        width = own.shape[1]
        handed_on = ops.relu(ops.matmul(received, self.transfer_kernel) + self.transfer_bias)
        both = ops.stack([own, handed_on], axis=1)  # [B, 2, k]
        left, right, values = ops.split(ops.matmul(both, self.kernel), 3, axis=-1)
        products = ops.cast(left, "float32") * ops.cast(right, "float32")
        scores = ops.sum(products, axis=-1, keepdims=True) / width**0.5
        weights = ops.softmax(scores, axis=1)  # [B, 2, 1]
        return ops.sum(ops.cast(weights, values.dtype) * values, axis=1), weights

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the task's own features."""
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
