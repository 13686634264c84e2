"""Pooling of weighted lists."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_COMBINERS = ("mean", "sum", "sqrtn")


@keras.saving.register_keras_serializable(package="mtlzoo")
class WeightedPooling(keras.layers.Layer):
    """One embedding from a list of embeddings and their weights.

        sum:    sum_l w_l e_l
        mean:   sum_l w_l e_l / sum_l w_l
        sqrtn:  sum_l w_l e_l / sqrt(sum_l w_l^2)

    An empty list (all weights 0) becomes zeros, with finite gradients.

    Args:
        combiner: `"mean"`, `"sum"` or `"sqrtn"`.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `(embeddings [B, L, e], weights [B, L])`; weights are at least 0, and 0 at the padding. Output: `[B, e]` in
    the compute dtype. The weights are normalised in float32, so float16 does not overflow.

    Raises:
        ValueError: Unknown combiner.

    Example:
        >>> pooled = WeightedPooling("mean")((np.array([[[1.0], [5.0], [9.0]]]), np.array([[3.0, 1.0, 0.0]])))
        >>> float(pooled[0, 0])
        2.0

    Source: the combiners of `tf.nn.embedding_lookup_sparse`.
    """

    def __init__(self, combiner: str = "mean", **kwargs: Any) -> None:
        # Autocast would round the weights to float16 before they are normalised.
        super().__init__(autocast=False, **kwargs)
        if combiner not in _COMBINERS:
            raise ValueError(f"combiner must be one of {', '.join(_COMBINERS)}, is {combiner!r}")
        self.combiner = combiner

    def call(self, inputs: Any) -> Any:
        """Pools; see the class."""
        embeddings, weights = inputs  # [B, L, e], [B, L]
        weights = ops.cast(weights, "float32")
        if self.combiner != "sum":
            weights = weights / self._norm(weights)
        weights = ops.expand_dims(ops.cast(weights, self.compute_dtype), 1)  # [B, 1, L]
        pooled = ops.matmul(weights, ops.cast(embeddings, self.compute_dtype))  # [B, 1, e]
        return ops.squeeze(pooled, axis=1)  # [B, e]

    def _norm(self, weights: Any) -> Any:
        squares = weights if self.combiner == "mean" else ops.square(weights)
        total = ops.sum(squares, axis=1, keepdims=True)  # [B, 1]
        # 1 for empty lists, before the root: its gradient at 0 is infinite.
        total = ops.where(total > 0.0, total, ops.ones_like(total))
        return total if self.combiner == "mean" else ops.sqrt(total)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`([B, L, e], [B, L])` to `[B, e]`."""
        embeddings, _ = input_shape
        return (embeddings[0], embeddings[2])

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "combiner": self.combiner}
