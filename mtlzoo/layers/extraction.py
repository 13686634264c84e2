"""One level of progressive layered extraction: experts of each task's own, shared experts, and gates over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtlzoo.layers.dropout import checked_rate
from mtlzoo.layers.experts import StackedExperts
from mtlzoo.layers.mlp import checked_count, checked_units
from mtlzoo.layers.per_part import PerPart


@keras.saving.register_keras_serializable(package="mtlzoo")
class ExtractionLevel(keras.layers.Layer):
    """For each task a mixture of its own experts and the shared ones; on request a shared mixture of all experts.

        y_t = sum over the experts i of task t and of the shared group of softmax(W_t x_t)_i E_i(x of i's group)
        y_s = sum over all experts i of softmax(W_s x_s)_i E_i(x of i's group)

    Task t's experts read x_t, shared experts read x_s. On a first level all of them read one x; then all gates are one
    matrix product. On later levels the gates of all tasks are one batched product. Softmaxes are computed in float32.

    Args:
        num_tasks: Number of tasks T, at least 1.
        own_experts: Number of experts of each task's own; 0 leaves the shared ones alone, which is MMoE.
        shared_experts: Number of shared experts; 0 leaves the tasks apart.
        units: Width of each layer of an expert, at least one.
        shared_output: Whether there is y_s, for a next level to read. It needs shared experts. Defaults to False.
        activation: Activation of every layer of an expert.
        dropout: Dropout rate behind every layer of an expert, in [0, 1).
        kernel_initializer: Initializer of one kernel of an expert or gate; a seed given in it is varied from expert to
            expert and from gate to gate.
        **kwargs: Of `keras.layers.Layer`.

    Input: `[B, D]`, which all groups read, or `[B, T + 1, D]`: x_1 ... x_T, x_s (`[B, T, D]` without shared experts).
    Output: `[B, T, units[-1]]`, or `[B, T + 1, units[-1]]` with y_s behind the tasks.

    Raises:
        ValueError: No task, no expert at all, a negative number of experts, no layer, a width below 1, a rate outside
            [0, 1), a shared output without shared experts, an input of another shape.

    Example:
        >>> first = ExtractionLevel(2, own_experts=3, shared_experts=2, units=(64,), shared_output=True)
        >>> last = ExtractionLevel(2, own_experts=3, shared_experts=2, units=(64,))
        >>> tuple(last(first(np.zeros((8, 100), "float32"))).shape)
        (8, 2, 64)

    Source: customized gate control and its levels in Tang et al., "Progressive layered extraction (PLE): A novel
    multi-task learning model for personalized recommendations" (RecSys 2020), section 4; gates have no bias there
    either. Computing gates together is our design.
    """

    def __init__(
        self,
        num_tasks: int,
        own_experts: int,
        shared_experts: int,
        units: Sequence[int],
        shared_output: bool = False,
        activation: Any = "relu",
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_tasks = checked_count("num_tasks", num_tasks)
        if min(own_experts, shared_experts) < 0 or own_experts + shared_experts == 0:
            raise ValueError(
                f"own_experts and shared_experts must be at least 0, and one of them at least 1, are {own_experts!r} "
                f"and {shared_experts!r}"
            )
        if shared_output and not shared_experts:
            raise ValueError("shared_output needs shared experts, shared_experts is 0")
        self.own_experts = int(own_experts)
        self.shared_experts = int(shared_experts)
        self.units = checked_units(units)
        if not self.units:
            raise ValueError("units must name at least one layer of an expert, is empty")
        self.shared_output = bool(shared_output)
        self.activation = keras.activations.get(activation)
        self.dropout = checked_rate(dropout)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        """Creates experts and gates."""
        tasks, groups = self.num_tasks, self.num_tasks + bool(self.shared_experts)
        self.one_input = len(input_shape) == 2
        if not self.one_input and tuple(input_shape[1:-1]) != (groups,):
            raise ValueError(
                f"{self.name}: the input must have shape [batch, D] or [batch, {groups}, D], has shape "
                f"{tuple(input_shape)}"
            )
        width, total = input_shape[-1], tasks * self.own_experts + self.shared_experts
        counts = [total] if self.one_input else [self.own_experts] * tasks + [self.shared_experts]
        self.read_groups = [group for group, count in enumerate(counts) if count]
        self.experts = [self._add_experts(counts, group, width) for group in self.read_groups]
        seen = self.own_experts + self.shared_experts  # experts that one task mixes
        self.task_gates = self.add_weight(
            shape=(width, tasks * seen) if self.one_input else (tasks, width, seen),
            initializer=PerPart(self.kernel_initializer.clone(), tasks),
            name="task_gates",
        )
        if self.shared_output:
            initializer = PerPart(self.kernel_initializer, tasks + 1).of_part(tasks)
            self.shared_gate = self.add_weight(shape=(width, total), initializer=initializer, name="shared_gate")

    def _add_experts(self, counts: list[int], group: int, width: int) -> StackedExperts:
        first = sum(counts[:group])
        experts = StackedExperts(
            counts[group],
            self.units,
            activation=self.activation,
            dropout=self.dropout,
            kernel_initializer=PerPart(self.kernel_initializer, sum(counts)).of_part(first),
            dtype=self.dtype_policy,
            name=f"experts_{group}",
        )
        experts.build((None, width))
        return experts

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Runs the experts and mixes them."""
        by_group = [inputs] if self.one_input else ops.unstack(inputs, axis=1)  # [B, D] each
        outputs = [
            experts(by_group[group], training=training)
            for group, experts in zip(self.read_groups, self.experts, strict=True)
        ]
        found = ops.concatenate(outputs, axis=1)  # [B, N, H]: the experts of each task, then the shared ones
        return ops.matmul(ops.cast(self.weights_of(inputs), found.dtype), found)  # [B, T, H] or [B, T + 1, H]

    def weights_of(self, inputs: Any) -> Any:
        """The weights that each gate gives the experts: the input to float32 `[B, T, N]`, each row of which sums to 1.

        The N experts are those of each task in turn, then the shared ones; other tasks' experts have weight 0. With a
        shared output `[B, T + 1, N]`, the shared gate last.

        Raises:
            ValueError: The level has not been built yet.
        """
        if not self.built:
            raise ValueError(f"{self.name} has no weights yet: call it once before weights_of")
        of_tasks, of_shared = self._scores(ops.cast(inputs, self.compute_dtype))
        weights = self._among_all(ops.softmax(ops.cast(of_tasks, "float32"), axis=-1))
        if of_shared is None:
            return weights
        shared = ops.expand_dims(ops.softmax(ops.cast(of_shared, "float32"), axis=-1), 1)
        return ops.concatenate([weights, shared], axis=1)

    def _scores(self, inputs: Any) -> tuple[Any, Any]:
        """Scores of the task gates `[B, T, own + shared]`, and of the shared gate `[B, N]` or `None`."""
        tasks, seen = self.num_tasks, self.own_experts + self.shared_experts
        if self.one_input:
            gates = [self.task_gates, self.shared_gate] if self.shared_output else [self.task_gates]
            scores = ops.matmul(inputs, ops.concatenate(gates, axis=1))
            of_tasks = ops.reshape(scores[:, : tasks * seen], (-1, tasks, seen))
            return of_tasks, scores[:, tasks * seen :] if self.shared_output else None
        by_task = ops.transpose(inputs[:, :tasks], (1, 0, 2))  # [T, B, D]: a batched product wants the tasks in front
        of_tasks = ops.transpose(ops.matmul(by_task, self.task_gates), (1, 0, 2))
        return of_tasks, ops.matmul(inputs[:, tasks], self.shared_gate) if self.shared_output else None

    def _among_all(self, weights: Any) -> Any:
        """Weights `[B, T, own + shared]` of what each task mixes to weights `[B, T, N]` of all experts."""
        tasks, own = self.num_tasks, self.own_experts
        if not own:
            return weights
        is_own = ops.reshape(ops.eye(tasks, dtype=weights.dtype), (tasks, tasks, 1))
        of_own = ops.expand_dims(weights[:, :, :own], 2) * is_own  # [B, T, T, own]: 0 for other tasks' experts
        return ops.concatenate([ops.reshape(of_own, (-1, tasks, tasks * own)), weights[:, :, own:]], axis=2)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[B, D]` or `[B, groups, D]` to `[B, T, units[-1]]`, with a shared output `[B, T + 1, units[-1]]`."""
        return (input_shape[0], self.num_tasks + self.shared_output, self.units[-1])

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "own_experts": self.own_experts,
            "shared_experts": self.shared_experts,
            "units": self.units,
            "shared_output": self.shared_output,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
