"""Dot products between the embeddings of fields."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mtlzoo")
class PairwiseDots(keras.layers.Layer):
    """The dot product of every field's embedding with every field's, its own included.

        d = vec(E E^T)

    Both triangles and the diagonal are kept, as in NCS4CVR's released code: a trunk whose connections are masked one by
    one may then keep a pair for one task in one place and for another task in the other.

    Args:
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, F, e]`. Output: `[B, F * F]`, pair (f, g) at `f * F + g`.

    Raises:
        ValueError: The input is not `[B, F, e]`.

    Example:
        >>> tuple(PairwiseDots()(np.zeros((8, 20, 16), "float32")).shape)
        (8, 400)

    Source: Xiao et al. (arXiv 2008.09872), the network of the released code.
    """

    def build(self, input_shape: Any) -> None:
        """Checks the shape."""
        if len(input_shape) != 3 or None in tuple(input_shape)[1:]:
            raise ValueError(f"{self.name}: the input must be [batch, fields, width], has shape {tuple(input_shape)}")

    def call(self, inputs: Any) -> Any:
        """One batched product."""
        fields = inputs.shape[1]
        dots = ops.matmul(inputs, ops.transpose(inputs, (0, 2, 1)))  # [B, F, F]
        return ops.reshape(dots, (-1, fields * fields))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, F, e]` to `[B, F * F]`."""
        return (input_shape[0], input_shape[1] * input_shape[1])
