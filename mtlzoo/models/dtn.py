"""DTN: groups of feature interactions of each task's own and one that all share, and a task-sensitive network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar, Literal

import keras
import numpy as np
from keras import ops

from mtlzoo.layers import Dropout, FeatureScale, InputGates, ModuleGate, Probability, TaskSensitiveGate
from mtlzoo.models.base import MultiTaskModel, tower_logit, weighted_losses
from mtlzoo.models.inputs import embed_features, model_inputs
from mtlzoo.models.interactions import Interactions
from mtlzoo.models.search_space import OF_ALL_MODELS, TOWER_UNITS, Choice, SearchSpace
from mtlzoo.tasks import LabelSpace
from pipelines.schema import Schema

_SHARED = "shared"
_FUSIONS = ("concat", "sum")
_GATE_INPUTS = ("features", "modules")


@keras.saving.register_keras_serializable(package="mtlzoo")
class DTN(MultiTaskModel):
    """Deep multiple task-specific feature interactions network.

    Each task has a group of modules of feature interaction, and one more group is shared. With `F_(g,j) = FIM_(g,j)(x)`
    the output of module j of group g, task t mixes its own group by one gate and all others by another,

        own_t    = sum_j softmax_j(G_t x)_j F_(t,j)
        others_t = sum_(g != t, j) softmax_(g,j)(G'_t x)_(g,j) s_(t,g) F_(g,j)
        logit_t  = w_t . MLP_t([own_t ; others_t]) + b_t

    and the task-sensitive network scales what comes from another task's group by that task's prediction,
    `s_(t,g) = p_g` for the pairs (t, g) in `tsn_pairs`, and 1 otherwise.

    Args:
        schema: Fitted schema.
        interactions: The modules of each group: names (`"masknet"`, `"gdcn"`, `"memonet"`), or Keras layers of your own
            from `[B, D]` to `[B, interaction_units]`. One that stands there n times makes n modules.
        interaction_units: Width of every module's output.
        interaction_settings: By name, arguments of the module's layer that differ from its defaults, such as
            `{"memonet": {"codebook_rows": 20000}}`.
        task_groups: Whether each task has a group of its own; without, all tasks mix the shared group alone.
        tsn_pairs: What the task-sensitive network scales: `"task:other"` scales, for `task`, the group of `other` by
            the prediction of `other`'s head. `"funnel"` pairs each label with all labels before it in the funnel. None
            without task groups; empty: no task-sensitive network.
        tsn_detach: Whether a task's loss leaves the predictions alone that scale its inputs.
        fusion: `"concat"`: the tower reads own and others side by side; `"sum"`: it reads their sum.
        gate_input: `"features"`: gates read x; `"modules"`: a module's score is `relu(a . F + c)` of its own (scaled)
            output.
        input_scale: Whether x is first scaled and shifted by learned numbers (`mtlzoo.layers.FeatureScale`); MemoNet's
            fields are not.
        tower_units: Widths of each task's tower.
        pos_weight: Weight of the positives in the losses that `compile()` chooses: of labels without a parent, and of
            the others.
        embedding_dim: Width of embeddings that the schema leaves open.
        numeric_embedding: `"piecewise_linear"` or `"periodic"`: numbers get an embedding beside themselves and that of
            their bucket (`mtlzoo.models.inputs.embedded_numbers`); `None`: they do not.
        dropout: Dropout rate behind the fusion and behind each layer of a tower.
        label_space: See `mtlzoo.tasks`.
        dtype: Dtype policy.
        name: Name of the model.

    Raises:
        ValueError: An unknown module, `fusion` or `gate_input`; a pair of unknown labels, or of a label with itself;
            pairs in a circle; a module of another output width; nothing to pair for MemoNet.

    Source: Bi et al., "DTN: Deep Multiple Task-specific Feature Interactions Network for Multi-Task Recommendation"
    (arXiv 2408.11611): groups, gates, task-sensitive network and concatenation as in its architecture figure. Its
    released code sums instead of concatenating, reads gates off the modules, detaches predictions and weighs positives;
    the preset `paper` (`mtlzoo.training.presets`) has these choices. More than two tasks, pairs by name (the code
    indexes by position, which goes wrong from three tasks on), dropout and label space are our design.

    Example:
        >>> model = DTN(dataset.schema, interactions=("masknet", "gdcn"))
        >>> model.compile()
        >>> history = model.fit(dataset.read("train", shuffle=True))
    """

    SEARCH_SPACE: ClassVar[SearchSpace] = {
        "interactions": Choice((("gdcn",), ("masknet", "gdcn"), ("masknet", "gdcn", "memonet"))),
        "interaction_units": Choice((64, 128, 256)),
        "task_groups": Choice((False, True)),
        "tsn_detach": Choice((False, True)),
        "fusion": Choice(("concat", "sum")),
        "gate_input": Choice(("features", "modules")),
        "tower_units": TOWER_UNITS,
        **OF_ALL_MODELS,
    }

    def __init__(
        self,
        schema: Schema,
        interactions: Sequence[Any] = ("masknet", "gdcn", "memonet"),
        interaction_units: int = 64,
        interaction_settings: Mapping[str, Mapping[str, Any]] | None = None,
        task_groups: bool = True,
        tsn_pairs: Literal["funnel"] | Sequence[str] = "funnel",
        tsn_detach: bool = True,
        fusion: Literal["concat", "sum"] = "concat",
        gate_input: Literal["features", "modules"] = "features",
        input_scale: bool = False,
        tower_units: tuple[int, ...] = (64,),
        pos_weight: tuple[float, float] = (1.0, 1.0),
        embedding_dim: int = 16,
        numeric_embedding: str | None = None,
        dropout: float = 0.1,
        label_space: LabelSpace = "esmm_product",
        dtype: Any = None,
        name: str = "dtn",
    ) -> None:
        if fusion not in _FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(_FUSIONS)}, is {fusion!r}")
        if gate_input not in _GATE_INPUTS:
            raise ValueError(f"gate_input must be one of {', '.join(_GATE_INPUTS)}, is {gate_input!r}")
        labels = [label.name for label in schema.labels]
        groups = [*labels, _SHARED] if task_groups else [_SHARED]
        pairs = _pairs(schema, tsn_pairs if task_groups else ())
        modules = Interactions(interactions, interaction_units, interaction_settings, dtype)
        sets = _sets(len(labels), len(groups), len(modules.names))  # [tasks, sets, groups * modules]

        # Graph
        inputs = model_inputs(schema)
        embedded = embed_features(schema, inputs, embedding_dim, numeric_embedding, dtype)
        x = embedded.flat()  # [batch, D]
        if input_scale:
            x = FeatureScale(dtype=dtype, name="input_scale")(x)
        found = modules.outputs(schema, inputs, embedded, x, len(groups))  # [batch, groups * modules, H]
        weights = None
        if gate_input == "features":
            weights = InputGates(sets, dtype=dtype, name="gates")(x)  # [batch, tasks, sets, groups * modules]
        logits: dict[str, Any] = {}
        for label in TopologicalSorter(pairs).static_order():
            task = labels.index(label)
            sensitive_to = {other: logits[other] for other in pairs[label]}
            scaled = partial(_sensitive, label, groups=groups, logits=sensitive_to, detach=tsn_detach, dtype=dtype)
            mixed = _mixed(label, found, None if weights is None else weights[:, task], sets[task], scaled, dtype)
            fused = ops.sum(mixed, axis=1) if fusion == "sum" else keras.layers.Flatten()(mixed)
            if dropout:
                fused = Dropout(dropout, dtype=dtype)(fused)
            logits[label] = tower_logit(label, fused, tower_units, dropout, dtype)

        # Config
        config = {
            "interactions": modules.config,
            "interaction_units": interaction_units,
            "interaction_settings": modules.settings,
            "task_groups": task_groups,
            "tsn_pairs": tsn_pairs if isinstance(tsn_pairs, str) else list(tsn_pairs),
            "tsn_detach": tsn_detach,
            "fusion": fusion,
            "gate_input": gate_input,
            "input_scale": input_scale,
            "tower_units": tuple(tower_units),
            "pos_weight": tuple(pos_weight),
            "embedding_dim": embedding_dim,
            "numeric_embedding": numeric_embedding,
            "dropout": dropout,
        }
        super().__init__(schema, inputs, logits, label_space, config, dtype, name)
        self.groups = groups
        self.module_names = modules.names

    def default_losses(self) -> dict[str, Any]:
        """Cross-entropy with the argument `pos_weight`."""
        return weighted_losses(self, self._arguments["pos_weight"])

    def gate_weights(self, features: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """How each task weighs the modules, before the task-sensitive network scales them.

        Args:
            features: Of a batch.

        Returns:
            By label and `"group/module"` float32 `[batch]`. A task's weights of its own group sum to 1, and so do those
            of all other groups together; without task groups there is one sum.

        Example:
            >>> weights = DTN(dataset.schema, interactions=["gdcn"]).gate_weights(features)
            >>> list(weights["click"])
            ['click/gdcn', 'conversion/gdcn', 'shared/gdcn']
        """
        labels = [label.name for label in self.schema.labels]
        names = [f"{group}/{module}" for group in self.groups for module in self.module_names]
        if self._arguments["gate_input"] == "features":
            outputs: Any = self.get_layer("gates").output  # [batch, tasks, sets, groups * modules]
        else:
            outputs = ops.stack([self.get_layer(f"{label}_gate").output for label in labels], axis=1)
        weights = ops.sum(keras.Model(self.inputs, outputs)(features), axis=2)  # each module is in one set of a task
        return {label: {name: weights[:, task, i] for i, name in enumerate(names)} for task, label in enumerate(labels)}


def _sets(tasks: int, groups: int, modules: int) -> np.ndarray:
    """Which modules each of a task's gates mixes: `[tasks, sets, groups * modules]` of booleans.

    A task's own group, and all others; where there is the shared group alone, that one.
    """
    if groups == 1:
        return np.ones((tasks, 1, modules), dtype=bool)
    own = np.repeat(np.eye(tasks, groups, dtype=bool), modules, axis=1)  # [tasks, groups * modules]
    return np.stack([own, ~own], axis=1)


def _mixed(label: str, found: Any, weights: Any, sets: np.ndarray, scaled: Callable[..., Any], dtype: Any) -> Any:
    """What a task takes from each set of modules: `[batch, sets, H]`.

    Args:
        label: The task.
        found: The modules' outputs, `[batch, groups * modules, H]`.
        weights: The task's, from the input: `[batch, sets, groups * modules]`; `None`: a gate on the modules is built.
        sets: Which modules each set has.
        scaled: What the task-sensitive network does to values along an axis of groups and modules.
        dtype: Policy of the layers.
    """
    if weights is None:
        found = scaled(found, 1)
        weights = ModuleGate(sets, dtype=dtype, name=f"{label}_gate")(found)
    else:
        # w (p F) = (p w) F: scaling the weights is scaling the modules, and far less to do.
        weights = scaled(weights, 2)
    return ops.matmul(ops.cast(weights, found.dtype), found)


def _sensitive(
    label: str, values: Any, axis: int, groups: Sequence[str], logits: Mapping[str, Any], detach: bool, dtype: Any
) -> Any:
    """Scales what comes from the groups of other tasks by those tasks' predictions.

    Args:
        label: The task that reads.
        values: Along `axis`, the modules of one group behind those of the other.
        axis: As said.
        groups: Names of the groups, in order.
        logits: Of the tasks whose predictions scale, by label.
        detach: See `TaskSensitiveGate`.
        dtype: Policy of the layers.

    Returns:
        The shape of the values.
    """
    if not logits:
        return values
    parts = ops.split(values, len(groups), axis=axis)
    for other, logit in logits.items():
        place = groups.index(other)
        gate = TaskSensitiveGate(detach, dtype=dtype, name=f"{label}_sensitive_to_{other}")
        parts[place] = gate((parts[place], Probability()(logit)))
    return ops.concatenate(parts, axis=axis)


def _pairs(schema: Schema, given: str | Sequence[str]) -> dict[str, list[str]]:
    """By label, the labels whose predictions scale what it takes from their groups.

    Raises:
        ValueError: A pair is not "task:other" with two different labels, or pairs go in a circle.
    """
    parents = {label.name: label.parent for label in schema.labels}
    pairs: dict[str, list[str]] = {label: [] for label in parents}
    if given == "funnel":
        for label, others in pairs.items():
            parent = parents[label]
            while parent is not None:
                others.append(parent)
                parent = parents[parent]
        return pairs
    for pair in [given] if isinstance(given, str) else given:
        label, _, other = str(pair).partition(":")
        if label not in pairs or other not in pairs or label == other:
            raise ValueError(
                f"tsn_pairs must be 'funnel' or pairs TASK:OTHER of two labels, has {pair!r}; the labels are "
                f"{', '.join(parents)}"
            )
        pairs[label].append(other)
    try:
        TopologicalSorter(pairs).prepare()
    except CycleError as error:
        raise ValueError(f"tsn_pairs go in a circle: {' needs '.join(reversed(error.args[1]))}") from None
    return pairs
