"""Gate networks that mix sets of modules: each task weighs every set of its own by a softmax."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from mtlzoo.layers.per_part import PerPart

# As a score it leaves a module no weight at all: exp(-1e9) is 0 in float32.
_OUTSIDE = -1e9


class _SetGates(keras.layers.Layer):
    """Base: from scores of modules to weights within sets."""

    def __init__(self, sets: Any, kernel_initializer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sets = np.array(sets, dtype=bool)
        if self.sets.ndim != 3 or not self.sets.size:
            raise ValueError(
                f"{self.name}: sets must say of each gate, set and module whether the module belongs to the set: "
                f"[gates, sets, modules], has shape {self.sets.shape}"
            )
        if not self.sets.any(axis=2).all():
            gate, index = np.argwhere(~self.sets.any(axis=2))[0]
            raise ValueError(f"{self.name}: set {index} of gate {gate} has no module")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def _softmax(self, scores: Any) -> Any:
        """Scores `[B, gates, modules]` to float32 `[B, gates, sets, modules]`, 0 outside of a set."""
        scores = ops.expand_dims(ops.cast(scores, "float32"), 2)  # [B, gates, 1, modules]
        inside = ops.convert_to_tensor(self.sets)  # [gates, sets, modules]
        return ops.softmax(ops.where(inside, scores, _OUTSIDE), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "sets": self.sets.tolist(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="mtlzoo")
class InputGates(_SetGates):
    """Weights of modules within sets, from the input of the modules.

        w_(g, s) = softmax over the modules m of set s of (x W_g)_m,   0 for modules outside of s

    The gates of all tasks are one matrix product `[B, D] x [D, G N]`; the softmax is computed in float32.

    Args:
        sets: Array or lists `[G, S, N]` of booleans: whether module n belongs to set s of gate g. Sets may overlap;
            none is empty.
        kernel_initializer: Initializer of one gate's kernel; a seed given in it is varied from gate to gate.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, D]`. Output: float32 `[B, G, S, N]`; the N weights of a set sum to 1.

    Raises:
        ValueError: `sets` has another shape, or a set without modules.

    Example:
        >>> gates = InputGates([[[True, False, False], [False, True, True]]])
        >>> gates(np.zeros((1, 5), "float32"))[0, 0].numpy().tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]

    Source: the gate networks GN in the architecture figure of Bi et al. (DTN, arXiv 2408.11611); no bias, as in MMoE.
    """

    def __init__(self, sets: Any, kernel_initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(sets, kernel_initializer, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Creates the joint kernel of all gates."""
        gates, _, modules = self.sets.shape
        self.kernel = self.add_weight(
            shape=(input_shape[-1], gates * modules),
            initializer=PerPart(self.kernel_initializer.clone(), gates),
            name="kernel",
        )

    def call(self, inputs: Any) -> Any:
        """Weighs the modules."""
        gates, _, modules = self.sets.shape
        scores = ops.matmul(ops.cast(inputs, self.compute_dtype), self.kernel)
        return self._softmax(ops.reshape(scores, (-1, gates, modules)))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, D]` to `[B, G, S, N]`."""
        return (input_shape[0], *self.sets.shape)

    def compute_output_spec(self, inputs: Any) -> Any:
        """float32 whatever the policy."""
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype="float32")


@keras.saving.register_keras_serializable(package="mtlzoo")
class ModuleGate(_SetGates):
    """One gate's weights of modules within sets, each score from the module's own output.

        w_s = softmax over the modules m of set s of relu(a_m . f_m + c_m),   0 for modules outside of s

    Args:
        sets: Array or lists `[S, N]` of booleans: whether module n belongs to set s. Sets may overlap; none is empty.
        kernel_initializer: Initializer of the vectors a_m, which it sees as kernels `[H, 1]`.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, N, H]`, the modules' outputs. Output: float32 `[B, S, N]`; the N weights of a set sum to 1.

    Raises:
        ValueError: `sets` has another shape, or a set without modules; the input has another number of modules.

    Example:
        >>> gate = ModuleGate([[True, True]])
        >>> tuple(gate(np.zeros((8, 2, 4), "float32")).shape)
        (8, 1, 2)

    Source: the released code of Bi et al. (DTN, arXiv 2408.11611), whose gates read the modules and not the input.
    """

    def __init__(self, sets: Any, kernel_initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__([sets], kernel_initializer, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Creates a vector and a number per module."""
        modules = self.sets.shape[2]
        if len(input_shape) != 3 or input_shape[1] != modules:
            raise ValueError(
                f"{self.name}: the input must have shape [batch, {modules}, H], has shape {tuple(input_shape)}"
            )
        self.kernel = self.add_weight(
            shape=(input_shape[2], modules),
            initializer=PerPart(self.kernel_initializer.clone(), modules),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(modules,), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        """Weighs the modules."""
        scores = ops.relu(ops.sum(inputs * ops.transpose(self.kernel), axis=-1) + self.bias)  # [B, N]
        return self._softmax(ops.expand_dims(scores, 1))[:, 0]  # [B, S, N]

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, N, H]` to `[B, S, N]`."""
        return (input_shape[0], *self.sets.shape[1:])

    def compute_output_spec(self, inputs: Any) -> Any:
        """float32 whatever the policy."""
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "sets": self.sets[0].tolist()}
