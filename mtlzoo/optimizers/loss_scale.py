"""Loss scaling for float16 that leaves row-sparse gradients sparse."""

from __future__ import annotations

from typing import Any

import keras

from mtlzoo import backend


@keras.saving.register_keras_serializable(package="mtlzoo")
class RowSparseLossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """`keras.optimizers.LossScaleOptimizer`, which Keras wraps around the optimizer under `mixed_float16`.

    Keras's own trains embedding tables correctly, but looks for infinities in a dense gradient of the whole table, at
    every step. This one looks at the rows that there are. Give it to `compile` in place of the optimizer.

    Args:
        inner_optimizer: The optimizer that moves the variables.
        **kwargs: Of `keras.optimizers.LossScaleOptimizer`.

    Example:
        >>> model.compile(optimizer=RowSparseLossScaleOptimizer(LazyAdam(1e-3)), loss="binary_crossentropy")

    Source: Micikevicius et al., "Mixed Precision Training" (ICLR 2018), section 3.2; the rows are our design.
    """

    def check_finite(self, grads: Any) -> Any:
        """Whether all gradients are finite."""
        return super().check_finite([g.values if backend.is_row_sparse(g) else g for g in grads])
