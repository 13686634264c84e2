"""Adam that leaves the rows alone that a batch does not touch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo import backend
from mtlzoo.optimizers.row_sparse import RowSparse


@keras.saving.register_keras_serializable(package="mtlzoo")
class LazyAdam(RowSparse, keras.optimizers.Adam):
    """Adam; on embedding tables only the rows that the batch looked up.

        m = beta_1 m + (1 - beta_1) sum_i g_i,   v = beta_2 v + (1 - beta_2) sum_i g_i^2
        w = w - learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    with g_i the gradients of a row's occurrences in the batch. Dense gradients are Keras's own Adam: one g. Of a
    variable with a row-sparse gradient (`tf.IndexedSlices`), the rows in the gradient are updated by the formula; all
    others keep w, m and v as they are, whereas Adam would decay their moments and let them coast. Where a batch names
    every row, the step is that of `keras.optimizers.Adam` with the same row-sparse gradient.

    t is the global step for all rows, so a row seen first at a late step gets no bias correction: its first move is
    about `(1 - beta_1) / sqrt(1 - beta_2) = 3.2` times the learning rate.

    Args:
        learning_rate: Float, schedule or callable. Defaults to 0.001.
        beta_1: Decay of the first moment. Defaults to 0.9.
        beta_2: Decay of the second moment. Defaults to 0.999.
        epsilon: Defaults to 1e-7.
        skip_zeros: Whether the same laziness holds element by element in dense gradients: where an element of the
            gradient is exactly 0, weight and moments stay as they are, weight decay included. For training that
            alternates between tasks which use different connections of one kernel: momentum of one task's step does
            not move the connections of another in the next. Defaults to False.
        sum_before_squaring: Whether v takes `(sum_i g_i)^2` in place of `sum_i g_i^2`. Defaults to False.
        **kwargs: Of `keras.optimizers.Optimizer`. What weight decay, clipping, averaging and accumulation do on
            row-sparse gradients stands at `mtlzoo.optimizers.row_sparse.RowSparse`.

    Raises:
        ValueError: `amsgrad` is given: it is not implemented for rows. In training: an option that row-sparse
            gradients do not allow.

    Example:
        >>> model.compile(optimizer=LazyAdam(1e-3), loss="binary_crossentropy")

    Source: Kingma and Ba, "Adam" (ICLR 2015), in the form before its section 2.1; the lazy rows are those of
    TensorFlow Addons' LazyAdam, which sums before squaring; occurrences: `mtlzoo.optimizers.row_sparse.RowSparse`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        skip_zeros: bool = False,
        sum_before_squaring: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("amsgrad", False):
            raise ValueError("LazyAdam has no amsgrad; leave it out, or use keras.optimizers.Adam(amsgrad=True)")
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            sum_before_squaring=sum_before_squaring,
            **kwargs,
        )
        self.skip_zeros = bool(skip_zeros)

    def _update_dense(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if not self.skip_zeros:
            super()._update_dense(gradient, variable, learning_rate)
            return
        gradient, rate = ops.cast(gradient, variable.dtype), ops.cast(learning_rate, variable.dtype)
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        moved = ops.cast(ops.not_equal(gradient, 0), variable.dtype)
        if self._decays(variable):
            self.assign_sub(variable, moved * variable * self._decay(variable, learning_rate))
        self.assign_add(momentum, moved * (gradient - momentum) * (1.0 - self.beta_1))
        self.assign_add(velocity, moved * (ops.square(gradient) - velocity) * (1.0 - self.beta_2))
        step = moved * momentum / (ops.sqrt(velocity) + self.epsilon)
        self.assign_sub(variable, self._corrected(rate, variable) * step)

    def _update_rows(self, ids: Any, gradients: Any, squares: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index], self._velocities[index]
        m = backend.gather_rows(momentum, ids)
        v = backend.gather_rows(velocity, ids)
        m = m + (gradients - m) * (1.0 - self.beta_1)
        v = v + (squares - v) * (1.0 - self.beta_2)
        backend.set_rows(momentum, ids, m)
        backend.set_rows(velocity, ids, v)

        rate = self._corrected(learning_rate, variable)
        backend.subtract_from_rows(variable, ids, rate * m / (ops.sqrt(v) + self.epsilon))

    def _corrected(self, learning_rate: Any, variable: Any) -> Any:
        """The learning rate, times what corrects both moments for their start at 0."""
        step = ops.cast(self.iterations + 1, variable.dtype)
        correction_1 = 1.0 - ops.power(ops.cast(self.beta_1, variable.dtype), step)
        correction_2 = 1.0 - ops.power(ops.cast(self.beta_2, variable.dtype), step)
        return learning_rate * ops.sqrt(correction_2) / correction_1

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        config = super().get_config()
        del config["amsgrad"]
        config["skip_zeros"] = self.skip_zeros
        return config
