"""What optimizers with a row-sparse step share."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo import backend


class RowSparse(keras.optimizers.Optimizer):
    """Stands before a Keras optimizer among the bases: a row-sparse gradient moves the rows that it names, no others.

    Keras's optimizers make a dense update of the whole variable out of such a gradient. Here:

    - Repeated rows are summed first, as the dense gradient would have it.
    - Clipping works on the summed rows, so that norms are those of the dense gradient.
    - Weight decay reaches a row only in steps whose batch names it; Keras would decay the whole table at every step.
      Variables with a dense gradient decay as in Keras.
    - `gradient_accumulation_steps` and `loss_scale_factor` are refused: Keras accumulates in a dense copy of the table,
      and cannot divide a row-sparse gradient.
    - `use_ema` works, but Keras averages whole tables: each step then costs a pass over them.

    A subclass gives `_update_rows`; dense gradients go to the `update_step` of the Keras optimizer behind.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable; called by Keras."""
        if not backend.is_row_sparse(gradient):
            self._update_dense(gradient, variable, learning_rate)
            return
        gradient = backend.sum_repeated_rows(gradient)
        ids, rows = gradient.indices, ops.cast(gradient.values, variable.dtype)
        if self._decays(variable):
            decayed = backend.gather_rows(variable, ids) * self._decay(variable, learning_rate)
            backend.subtract_from_rows(variable, ids, decayed)
        self._update_rows(ids, rows, variable, ops.cast(learning_rate, variable.dtype))

    def _update_dense(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves a whole variable, as Keras does."""
        if self._decays(variable):
            self.assign_sub(variable, variable * self._decay(variable, learning_rate))
        super().update_step(gradient, variable, learning_rate)

    def _update_rows(self, ids: Any, gradients: Any, variable: Any, learning_rate: Any) -> None:
        """Moves the rows `ids`, which are distinct, along `gradients`, one row each."""
        raise NotImplementedError

    def _decays(self, variable: Any) -> bool:
        return self.weight_decay is not None and self._use_weight_decay(variable)

    def _decay(self, variable: Any, learning_rate: Any) -> Any:
        return ops.cast(self.weight_decay, variable.dtype) * ops.cast(learning_rate, variable.dtype)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: `update_step` decays, since it knows which rows there are."""

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        if self.clipnorm is None and self.global_clipnorm is None and self.clipvalue is None:
            return grads
        return backend.map_summed_rows(super()._clip_gradients, grads)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Applies gradients; called by Keras.

        Raises:
            ValueError: There is a row-sparse gradient, and an option that cannot work with it.
        """
        grads = list(grads)
        if any(backend.is_row_sparse(gradient) for gradient in grads):
            for option in ("gradient_accumulation_steps", "loss_scale_factor"):
                value = getattr(self, option)
                if value:
                    raise ValueError(
                        f"{self.name}: {option}={value} does not work with the row-sparse gradients "
                        f"of an embedding table; {_INSTEAD[option]}"
                    )
        super().apply(grads, trainable_variables)


_INSTEAD = {
    "gradient_accumulation_steps": "leave it out and use a larger batch",
    "loss_scale_factor": "leave it out and wrap the optimizer in mtlzoo.optimizers.RowSparseLossScaleOptimizer",
}
