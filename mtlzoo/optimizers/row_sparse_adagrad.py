"""Adagrad that touches only the rows that a batch looked up."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo import backend
from mtlzoo.optimizers.row_sparse import RowSparse


@keras.saving.register_keras_serializable(package="mtlzoo")
class RowSparseAdagrad(RowSparse, keras.optimizers.Adagrad):
    """Adagrad; on embedding tables only the rows that the batch looked up, which for Adagrad is exact.

        a = a + sum_i g_i^2,   w = w - learning_rate sum_i g_i / sqrt(a + epsilon)

    with g_i the gradients of a row's occurrences in the batch; of a dense gradient there is one. A row that does not
    occur would not move, so a step equals that of `keras.optimizers.Adagrad` with the same gradient, at a cost that
    does not depend on the size of the table. The accumulators are kept element by element.

    Args:
        learning_rate: Float, schedule or callable. Defaults to 0.001, as in Keras; 0.01 to 0.1 is usual for tables.
        initial_accumulator_value: Start of the accumulators, at least 0. Defaults to 0.1.
        epsilon: Defaults to 1e-7.
        sum_before_squaring: Whether a takes `(sum_i g_i)^2` in place of `sum_i g_i^2`. Defaults to False.
        **kwargs: Of `keras.optimizers.Optimizer`. What weight decay, clipping, averaging and accumulation do on
            row-sparse gradients stands at `mtlzoo.optimizers.row_sparse.RowSparse`.

    Raises:
        ValueError: In training: an option that row-sparse gradients do not allow.

    Example:
        >>> model.compile(optimizer=RowSparseAdagrad(0.05), loss="binary_crossentropy")

    Source: Duchi et al., "Adaptive subgradient methods for online learning and stochastic optimization" (JMLR 2011);
    occurrences: `mtlzoo.optimizers.row_sparse.RowSparse`.
    """

    def _update_rows(self, ids: Any, gradients: Any, squares: Any, variable: Any, learning_rate: Any) -> None:
        accumulator = self._accumulators[self._get_variable_index(variable)]
        a = backend.gather_rows(accumulator, ids) + squares
        backend.set_rows(accumulator, ids, a)
        backend.subtract_from_rows(variable, ids, learning_rate * gradients / ops.sqrt(a + self.epsilon))
