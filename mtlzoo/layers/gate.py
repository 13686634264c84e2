"""Softmax gates over experts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo.layers.per_part import PerPart


@keras.saving.register_keras_serializable(package="mtlzoo")
class SoftmaxGate(keras.layers.Layer):
    """One mixture of the experts for each task.

        f_t = sum_i softmax(W_t x)_i E_i(x)

    The gates of all tasks are one matrix product `[B, D] x [D, T E]`; the softmax is computed in float32.

    Args:
        num_gates: Number of tasks T, at least 1.
        kernel_initializer: Initializer of one gate's kernel; a seed given in it is varied from gate to gate.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `(x [B, D], experts [B, E, H])`. Output: `[B, T, H]`.

    Raises:
        ValueError: No gate.

    Example:
        >>> gate = SoftmaxGate(num_gates=2)
        >>> tuple(gate((np.zeros((8, 100), "float32"), np.zeros((8, 4, 128), "float32"))).shape)
        (8, 2, 128)

    Source: Ma et al., "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts" (KDD
    2018), eq. 6-7. Gates have no bias there either.
    """

    def __init__(self, num_gates: int, kernel_initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_gates < 1:
            raise ValueError(f"num_gates must be at least 1, is {num_gates!r}")
        self.num_gates = int(num_gates)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates the joint kernel of all gates."""
        x_shape, experts_shape = input_shape
        self.num_experts = experts_shape[1]
        self.kernel = self.add_weight(
            shape=(x_shape[-1], self.num_gates * self.num_experts),
            initializer=PerPart(self.kernel_initializer.clone(), self.num_gates),
            name="kernel",
        )

    def call(self, inputs: Any) -> Any:
        """Mixes the experts."""
        x, experts = inputs  # [B, D], [B, E, H]
        weights = ops.cast(self.weights_of(x), experts.dtype)  # [B, T, E]
        return ops.matmul(weights, experts)  # [B, T, H]

    def weights_of(self, x: Any) -> Any:
        """The weights that each gate gives the experts: `[B, D]` to float32 `[B, T, E]`, each row of which sums to 1.

        Raises:
            ValueError: The gate has not been built yet.
        """
        if not self.built:
            raise ValueError(f"{self.name} has no weights yet: call it once on (x, experts) before weights_of(x)")
        scores = ops.cast(ops.matmul(ops.cast(x, self.compute_dtype), self.kernel), "float32")  # [B, T * E]
        return ops.softmax(ops.reshape(scores, (-1, self.num_gates, self.num_experts)), axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`([B, D], [B, E, H])` to `[B, T, H]`."""
        _, experts = input_shape
        return (experts[0], self.num_gates, experts[2])

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "num_gates": self.num_gates,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
