"""A model whose tasks each use a part of one trunk, as it is served: a plain trunk for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mtlzoo.layers import MaskedDense
from mtlzoo.layers.folding import fold
from mtlzoo.models.base import MultiTaskModel, funnel_probabilities
from mtlzoo.models.inputs import model_inputs

# To drop only a few neurons would not pay: 511 units were 3 to 7 % slower than 512 on two cores, 496 were not.
_WIDTHS = 16


def with_folded_masks(model: MultiTaskModel, trunk: Sequence[MaskedDense]) -> keras.Model:
    """The model with the inference masks of each task folded into kernels of the task's own.

    Each label gets a chain of dense layers `[batch, D]` -> `[batch, 1]`: trunk, tower and head, as
    `mtlzoo.layers.folding.fold` leaves them, with widths that are a multiple of 16 or as they were. It holds no masks
    and no gates, and gives the model's probabilities up to rounding. With T tasks it costs what T separate trunks cost,
    of the same widths at most.

    The embedding layers are the model's own, not copies. Kernels and biases are copies as of now: later training of the
    model does not reach them. All D features stay, also those of which a task uses none: to pick 90 % of 368 columns
    and multiply them was 15 % slower than to multiply all, to pick half of them 8 % faster (two cores, batch 1024).

    Args:
        model: Its logits are those of `mtlzoo.models.base.tower_logits`.
        trunk: Its masked layers, from the features on; at least one. Task t of each is the t-th label of the schema.

    Returns:
        A functional model with the inputs and outputs of the model.

    Raises:
        ValueError: No trunk, a hidden layer that is not relu, a weight that is not finite.

    Example:
        >>> model = NCS4CVR(dataset.schema, trunk_units=(256, 128))
        >>> served = with_folded_masks(model, [model.get_layer("trunk_0"), model.get_layer("trunk_1")])
        >>> served.count_params() < model.count_params()
        True

    Source: our design.
    """
    if not trunk:
        raise ValueError(f"{model.name}: there is no masked layer to fold; give the layers of the trunk")
    # A model within the model: calling the layers themselves anew would leave traces in the trained model's graph.
    features = keras.Model(model.input, trunk[0].input, name=f"{model.name}_features")
    inputs = model_inputs(model.schema)
    x = features(inputs)  # [batch, D]
    masks = [np.asarray(layer.masks()) for layer in trunk]  # [T, H_in, H_out] each
    logits = {}
    for t, label in enumerate(model.schema.labels):
        tower = model.get_layer(f"{label.name}_tower")
        _require_relu([*trunk, tower])
        hidden = [step for step in tower.steps if isinstance(step, keras.layers.Dense)]
        layers = [*trunk, *hidden, model.get_layer(f"{label.name}_logit")]
        of_task = [mask[t] for mask in masks] + [None] * (len(layers) - len(trunk))
        logits[label.name] = _folded_chain(x, layers, of_task, label.name)
    outputs = funnel_probabilities(model.schema, logits, model.label_space)
    return keras.Model(inputs, outputs, name=f"{model.name}_folded")


def _folded_chain(x: Any, layers: Sequence[Any], masks: Sequence[Any], label: str) -> Any:
    """The logit `[batch, 1]` of a label from the features `[batch, D]`."""
    kernels = [np.asarray(layer.kernel) for layer in layers]
    biases = [np.asarray(layer.bias) for layer in layers]
    for i, (layer, weights) in enumerate(zip(layers, fold(kernels, biases, masks, _WIDTHS), strict=True)):
        head = i == len(layers) - 1
        dense = keras.layers.Dense(
            len(weights[1]),
            activation=None if head else "relu",
            kernel_initializer="zeros",  # draws no random numbers: exporting does not change what training does next
            dtype=layer.dtype_policy,
            name=f"{label}_logit" if head else f"{label}_folded_{i}",
        )
        x = dense(x)
        dense.set_weights(weights)
    return x


def _require_relu(layers: Sequence[Any]) -> None:
    for layer in layers:
        if layer.activation is not keras.activations.relu:
            activation = keras.activations.serialize(layer.activation)
            raise ValueError(f"{layer.name}: only relu layers can be folded, has activation {activation!r}")
