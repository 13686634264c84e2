"""Several expert MLPs on one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtlzoo.layers.dropout import Dropout, checked_rate
from mtlzoo.layers.mlp import checked_units
from mtlzoo.layers.per_part import PerPart


@keras.saving.register_keras_serializable(package="mtlzoo")
class StackedExperts(keras.layers.Layer):
    """E expert MLPs of the same shape.

        h_0^i = x,   h_{l+1}^i = dropout(activation(h_l^i W_l^i + b_l^i)),   i = 1 ... E

    The kernels of a layer are one variable, `[D, E H]` for the first layer and `[E, H, H']` for the others; each
    expert's part is drawn by itself, with the fans of one expert. The products are done expert by expert: one product
    `[B, D] x [D, E H]` is faster by itself, but what it leaves is larger than a processor's caches, and a training step
    of MMoE took 13 % longer with it.

    Args:
        num_experts: Number of experts E, at least 1.
        units: Width of each layer of an expert, at least one.
        activation: Activation of every layer.
        dropout: Dropout rate behind every layer, in [0, 1).
        kernel_initializer: Initializer of one expert's kernels; a seed given in it is varied from expert to expert.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, D]`. Output: `[B, E, units[-1]]`.

    Raises:
        ValueError: No expert, no layer, a width below 1, a rate outside [0, 1), an input that is not `[B, D]`.

    Example:
        >>> experts = StackedExperts(4, (256, 128))
        >>> tuple(experts(np.zeros((8, 100), "float32")).shape)
        (8, 4, 128)

    Source: the experts of Ma et al., "Modeling task relationships in multi-task learning with multi-gate
    mixture-of-experts" (KDD 2018), eq. 6; the joint variables are our design.
    """

    def __init__(
        self,
        num_experts: int,
        units: Sequence[int],
        activation: Any = "relu",
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, is {num_experts!r}")
        self.num_experts = int(num_experts)
        self.units = checked_units(units)
        if not self.units:
            raise ValueError("units must name at least one layer of an expert, is empty")
        self.activation = keras.activations.get(activation)
        self.dropout = checked_rate(dropout)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates kernels and biases, and one dropout per layer."""
        if len(input_shape) != 2:
            raise ValueError(f"{self.name}: the input must have shape [batch, D], has shape {tuple(input_shape)}")
        experts, first = self.num_experts, self.units[0]
        self.first_kernel = self._add_kernel("kernel_0", (input_shape[1], experts * first))
        self.first_bias = self.add_weight(shape=(experts * first,), initializer="zeros", name="bias_0")
        self.kernels, self.biases = [], []
        for i, (width_in, width) in enumerate(zip(self.units, self.units[1:], strict=False), start=1):
            self.kernels.append(self._add_kernel(f"kernel_{i}", (experts, width_in, width)))
            self.biases.append(self.add_weight(shape=(experts, 1, width), initializer="zeros", name=f"bias_{i}"))
        rates = [self.dropout] * len(self.units) if self.dropout else []
        self.dropouts = [Dropout(rate, dtype=self.dtype_policy) for rate in rates]

    def _add_kernel(self, name: str, shape: tuple[int, ...]) -> Any:
        initializer = PerPart(self.kernel_initializer.clone(), self.num_experts)
        return self.add_weight(shape=shape, initializer=initializer, name=name)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Runs the experts."""
        count = self.num_experts
        layers = [(ops.split(self.first_kernel, count, axis=1), ops.split(self.first_bias, count))]
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            layers.append((ops.unstack(kernel), ops.unstack(bias[:, 0])))
        outputs = []
        for expert in range(count):
            h = inputs  # [B, D]
            for i, (kernels, biases) in enumerate(layers):
                h = self.activation(ops.add(ops.matmul(h, kernels[expert]), biases[expert]))  # [B, units[i]]
                h = self.dropouts[i](h, training=training) if self.dropouts else h
            outputs.append(h)
        return ops.stack(outputs, axis=1)  # [B, E, units[-1]]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, D]` to `[B, E, units[-1]]`."""
        return (input_shape[0], self.num_experts, self.units[-1])

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
