"""What optimizers with a row-sparse step share."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo import backend


class RowSparse(keras.optimizers.Optimizer):
    """Stands before a Keras optimizer among the bases: a row-sparse gradient moves the rows that it names, no others.

    Keras's optimizers make a dense update of the whole variable out of such a gradient. Here:

    - A row that occurs several times in a batch moves along the sum of its gradients, while the squares that second
      moments and accumulators take are summed occurrence by occurrence: `sum_i g_i^2`, not `(sum_i g_i)^2`. Keras's
      optimizers do the same where the gradient of a table is row-sparse. It is no detail: where occurrences agree, a
      row that occurs k times moves up to sqrt(k) times as far, and tables learn faster (docs/speed.md).
    - Norms for clipping are those of the dense gradient. `clipvalue` clips the summed rows, each of which then counts
      as one occurrence.
    - Weight decay reaches a row only in steps whose batch names it; Keras would decay the whole table at every step.
      Variables with a dense gradient decay as in Keras.
    - `gradient_accumulation_steps` and `loss_scale_factor` are refused: Keras accumulates in a dense copy of the table,
      and cannot divide a row-sparse gradient.
    - `use_ema` works, but Keras averages whole tables at every step, and goes on from the averages where `fit` ends;
      `mtlzoo.callbacks.AveragedWeights` does neither.

    A subclass gives `_update_rows`; dense gradients go to the `update_step` of the Keras optimizer behind.

    Args:
        *args: Of the Keras optimizer behind.
        sum_before_squaring: Whether squares are those of a row's summed gradient, `(sum_i g_i)^2`: what the optimizer
            does with the same gradient as a dense tensor, and what lazy Adams of other libraries do. Defaults to False.
        **kwargs: Of the Keras optimizer behind.

    Source: our design; squaring before the sum is what Wang and Aitchison, "Batch size invariant Adam"
    (arXiv 2402.18824), do with parts of a batch.
    """

    def __init__(self, *args: Any, sum_before_squaring: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sum_before_squaring = bool(sum_before_squaring)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable; called by Keras."""
        if not backend.is_row_sparse(gradient):
            self._update_dense(gradient, variable, learning_rate)
            return
        ids, *sums = backend.sums_of_rows(gradient)
        rows, squares = (ops.cast(x, variable.dtype) for x in sums)
        if self.sum_before_squaring:
            squares = ops.square(rows)
        if self._decays(variable):
            decayed = backend.gather_rows(variable, ids) * self._decay(variable, learning_rate)
            backend.subtract_from_rows(variable, ids, decayed)
        self._update_rows(ids, rows, squares, variable, ops.cast(learning_rate, variable.dtype))

    def _update_dense(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves a whole variable, as Keras does."""
        if self._decays(variable):
            self.assign_sub(variable, variable * self._decay(variable, learning_rate))
        super().update_step(gradient, variable, learning_rate)

    def _update_rows(self, ids: Any, gradients: Any, squares: Any, variable: Any, learning_rate: Any) -> None:
        """Moves the rows `ids`, which are distinct, along `gradients`; `squares` feed moments. One row of each."""
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
        clip = backend.scale_summed_rows if self.clipvalue is None else backend.map_summed_rows
        return clip(super()._clip_gradients, grads)

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

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "sum_before_squaring": self.sum_before_squaring}


_INSTEAD = {
    "gradient_accumulation_steps": "leave it out and use a larger batch",
    "loss_scale_factor": "leave it out and wrap the optimizer in mtlzoo.optimizers.RowSparseLossScaleOptimizer",
}
