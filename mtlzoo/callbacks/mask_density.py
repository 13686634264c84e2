"""How many connections the masks of each task leave open, epoch by epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from mtlzoo.layers import MaskedDense


class MaskDensity(keras.callbacks.Callback):
    """Adds `<task>_density` for each task to the logs of every epoch.

        density_t = sum_l n_l d_lt / sum_l n_l

    `n_l` is the number of connections of masked layer l, `d_lt` its `MaskedDense.expected_density` for task t: with
    hard-concrete gates the expectation in training, otherwise the share that is open. Tasks are named as in
    `task_names`. A model without `MaskedDense` layers gets nothing added.

    Keras appends its own `History` behind the callbacks of the caller, so the values reach `history.history`.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), MaskedDense(4, num_tasks=1), keras.layers.Concatenate()])
        >>> model.compile(loss="mse")
        >>> history = model.fit(np.ones((8, 3)), np.ones((8, 4)), callbacks=[MaskDensity()], verbose=0).history
        >>> [round(density, 2) for density in history["task_1_density"]]
        [1.0]

    Source: our design.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the densities to the logs."""
        if logs is None:
            return
        layers = masked_layers(self.model)
        if not layers:
            return
        sizes = [layer.kernel.shape[0] * layer.units for layer in layers]
        densities = [keras.ops.convert_to_numpy(layer.expected_density()) for layer in layers]  # [T] each
        for task, density in zip(task_names(self.model), np.average(densities, axis=0, weights=sizes), strict=True):
            logs[density_key(task)] = float(density)


def density_key(task: str) -> str:
    """The key of a task's density in the logs and in a run's history."""
    return f"{task}_density"


def masked_layers(model: keras.Model) -> list[MaskedDense]:
    """The `MaskedDense` layers of a model, in order.

    Raises:
        ValueError: They have different numbers of tasks.
    """
    layers = [layer for layer in model.layers if isinstance(layer, MaskedDense)]
    counts = sorted({layer.num_tasks for layer in layers})
    if len(counts) > 1:
        raise ValueError(f"{model.name}: its masked layers must have the same tasks; they have {counts} tasks")
    return layers


def task_names(model: keras.Model) -> tuple[str, ...]:
    """The tasks behind the masks of a model, in the order of the masks.

    Returns:
        The labels of its schema; `task_1`, `task_2`, ... where it has none (a clone, say), or another number of labels
        than of masks. Empty without masks.

    Raises:
        ValueError: Its masked layers have different numbers of tasks.
    """
    layers = masked_layers(model)
    count = layers[0].num_tasks if layers else 0
    schema = getattr(model, "schema", None)
    labels = tuple(label.name for label in schema.labels) if schema is not None else ()
    return labels if len(labels) == count else tuple(f"task_{i + 1}" for i in range(count))
