"""DCRNN: a recurrent cross over features, partly shared between tasks, and transfer along the funnel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from numbers import Real
from typing import Any, ClassVar, Literal

import keras
from keras import ops

from mtlzoo.layers import MLP, Dropout, FeatureFilter, InformationTransfer, RecurrentCross
from mtlzoo.models.base import MultiTaskModel, weighted_losses
from mtlzoo.models.histories import read_histories
from mtlzoo.models.inputs import EmbeddedFeatures, embed_features, model_inputs
from mtlzoo.models.search_space import OF_ALL_MODELS, TOWER_UNITS, Choice, Range, SearchSpace
from mtlzoo.tasks import LabelSpace
from pipelines.schema import Schema

_SHARED = "shared"
_AXES = ("depth", "field", "task")


@keras.saving.register_keras_serializable(package="mtlzoo")
class DCRNN(MultiTaskModel):
    """Deep cross network by a recurrent cell, with partial parameter sharing.

    The state of the recurrence has a shared part of `d_s = round(sharing * units)` numbers and, for each task, a
    private part of `d_p = units - d_s`. With x the embedded features and x' = x (or filtered, see `input_filter`),

        s   = RecurrentCross(P_s x')                              read by every task, reads no private part
        p_t = RecurrentCross_t(P_t x', states of s)               reads the shared state before each step
        h_t = [s ; p_t],     v_t = MLP_t(h_t)
        v'_t = InformationTransfer(v_t, v'_(t's parent))          v'_t = v_t for labels without a parent
        logit_t = w_t . v'_t + b_t

    `mtlzoo.layers.RecurrentCross` has the equations of the recurrence. `sharing=1` is hard parameter sharing: one
    cross network, a tower per task. `sharing=0` (with `transfer=False`) is a cross network per task.

    Args:
        schema: Fitted schema.
        units: Width of a task's state, shared and private part together.
        sharing: Share of it that all tasks share, from 0 to 1.
        steps: Depth of the cross network. It costs time, and no parameters.
        cell: `"gru"`, `"lstm"` or `"vanilla"`.
        axis: `"depth"`: as above. `"field"`: shared and private cells run over the field embeddings instead. `"task"`:
            a further cell, the same for all tasks, runs from s over the labels, parents first, and each task reads its
            own step's state in place of s; it needs a shared part.
        gates: `"learned"`, or `"open"` (axis depth only): DCN-v2 with one layer's weights at every depth.
        tied: Whether all depths have the same weights (axis depth only).
        gate_bias: Start of the biases of all gates (axis depth only): a gate starts open by its sigmoid, 3 is .95.
        transfer: Whether each task hears what its parent in the funnel has found.
        histories: Ordered lists to be read one by one, each with the feature that it is crossed with: `"list:feature"`.
            `"ordered"`: every list that the schema declares `ordered`, with the first single-valued feature of the same
            table. Empty: none. Lists also enter pooled, as in all models.
        history_units: Width of the state that reads a history.
        input_filter: Width of the hidden layer of a filter on the inputs (`mtlzoo.layers.FeatureFilter`); `None`: none.
        tower_units: Widths of each task's tower; the last one is that of v.
        pos_weight: Weight of the positives in the losses that `compile()` chooses: of labels without a parent, and of
            the others.
        embedding_dim: Width of embeddings that the schema leaves open.
        numeric_embedding: `"piecewise_linear"` or `"periodic"`: numbers get an embedding beside themselves and that of
            their bucket (`mtlzoo.models.inputs.embedded_numbers`); `None`: they do not.
        dropout: Dropout rate behind h and behind each layer of a tower.
        label_space: See `mtlzoo.tasks`.
        dtype: Dtype policy.
        name: Name of the model.

    Raises:
        ValueError: A ratio outside [0, 1], or one that leaves less than one unit to a part; an unknown cell or axis; no
            shared part for `axis="task"`; a history that the schema does not declare ordered, or without a feature to
            cross it with; fields of several widths for `axis="field"`.

    Source: our design. Zhou and Yu, "DCRNN: A Deep Cross approach based on RNN for Partial Parameter Sharing in
    Multi-task Learning" (arXiv 2310.11777), state that an RNN crosses the features after the idea of cross networks,
    that parameters are partly shared, and that the correlation between click and consumption is captured; we have found
    no equations, settings, results or code of theirs. Cell, split, transfer (the module of AITM, Xi et al., KDD 2021),
    losses and all defaults are this project's.

    Example:
        >>> model = DCRNN(dataset.schema, units=96, sharing=0.5)
        >>> model.compile()
        >>> history = model.fit(dataset.read("train", shuffle=True))
    """

    SEARCH_SPACE: ClassVar[SearchSpace] = {
        "units": Choice((96, 192, 384)),
        "sharing": Choice((1 / 3, 1 / 2, 2 / 3, 1.0)),
        "steps": Range(1, 4),
        "cell": Choice(("vanilla", "gru", "lstm")),
        "tied": Choice((False, True)),
        "transfer": Choice((False, True)),
        "tower_units": TOWER_UNITS,
        **OF_ALL_MODELS,
    }

    def __init__(
        self,
        schema: Schema,
        units: int = 384,
        sharing: float = 2 / 3,
        steps: int = 3,
        cell: Literal["gru", "lstm", "vanilla"] = "gru",
        axis: Literal["depth", "field", "task"] = "depth",
        gates: Literal["learned", "open"] = "learned",
        tied: bool = True,
        gate_bias: float = 3.0,
        transfer: bool = True,
        histories: Literal["ordered"] | Sequence[str] = "ordered",
        history_units: int = 32,
        input_filter: int | None = None,
        tower_units: tuple[int, ...] = (128, 64),
        pos_weight: tuple[float, float] = (1.0, 1.0),
        embedding_dim: int = 16,
        numeric_embedding: str | None = None,
        dropout: float = 0.1,
        label_space: LabelSpace = "esmm_product",
        dtype: Any = None,
        name: str = "dcrnn",
    ) -> None:
        if axis not in _AXES:
            raise ValueError(f"axis must be one of {', '.join(_AXES)}, is {axis!r}")
        widths = _widths([label.name for label in schema.labels], units, sharing, axis)
        recurrence = {"cell": cell, "gates": gates, "tied": tied, "dtype": dtype}
        recurrence |= {"axis": "field"} if axis == "field" else {"steps": steps, "gate_bias": gate_bias}

        # Graph
        inputs = model_inputs(schema)
        embedded = embed_features(schema, inputs, embedding_dim, numeric_embedding, dtype)
        read = read_histories(schema, inputs, embedded, histories, cell, history_units, dtype)
        if axis == "field":
            items = _filtered_fields(_fields(embedded, read, dtype), input_filter, dtype)
            sources = dict.fromkeys(widths, items)  # [batch, fields, width]
        else:
            x = keras.layers.Concatenate()([embedded.flat(), *read]) if read else embedded.flat()  # [batch, D]
            x = _filter(input_filter, dtype)(x) if input_filter else x
            sources = _projections(x, widths, dtype)  # [batch, d_s] or [batch, d_p]
        parts = _crossed(sources, widths, recurrence, axis)
        if axis == "task":
            features = _along_the_funnel(schema, parts, cell, dropout, dtype)
        else:
            features = {label.name: _joined(parts, label.name, dropout, dtype) for label in schema.labels}
        logits = _logits(schema, features, transfer, tower_units, dropout, dtype)

        # Config
        config = {
            "units": units,
            "sharing": sharing,
            "steps": steps,
            "cell": cell,
            "axis": axis,
            "gates": gates,
            "tied": tied,
            "gate_bias": gate_bias,
            "transfer": transfer,
            "histories": histories if isinstance(histories, str) else list(histories),
            "history_units": history_units,
            "input_filter": input_filter,
            "tower_units": tuple(tower_units),
            "pos_weight": tuple(pos_weight),
            "embedding_dim": embedding_dim,
            "numeric_embedding": numeric_embedding,
            "dropout": dropout,
        }
        super().__init__(schema, inputs, logits, label_space, config, dtype, name)
        self.parts = list(widths)
        self._receivers = [label.name for label in schema.labels if transfer and label.parent]

    def default_losses(self) -> dict[str, Any]:
        """Cross-entropy with the argument `pos_weight`."""
        return weighted_losses(self, self._arguments["pos_weight"])

    @property
    def has_update_gates(self) -> bool:
        """Whether the cells have gates that are learned."""
        return self._arguments["cell"] != "vanilla" and self._arguments["gates"] == "learned"

    def update_gates(self, features: dict[str, Any]) -> dict[str, list[Any]]:
        """How far the update gates are open, step by step: what each part of the state lets in.

        Args:
            features: Of a batch.

        Returns:
            By part, `"shared"` or a label, and per step, float32 `[batch, width of the part]`.

        Raises:
            ValueError: The cells have no gates, or they are fixed.

        Example:
            >>> gates = DCRNN(dataset.schema, units=96, steps=2).update_gates(features)
            >>> {part: len(steps) for part, steps in gates.items()}
            {'shared': 2, 'click': 2, 'conversion': 2}
        """
        layers = {part: self.get_layer(f"{part}_cross") for part in self.parts}
        read = keras.Model(self.inputs, {part: layer.input for part, layer in layers.items()})(features)
        return {part: layer.update_gates(read[part]) for part, layer in layers.items()}

    def transfer_weights(self, features: dict[str, Any]) -> dict[str, Any]:
        """How much of what each task reads comes from its parent in the funnel: 0 nothing, 1 everything.

        Args:
            features: Of a batch.

        Returns:
            By label float32 `[batch]`; labels that nothing is handed to are left out.

        Example:
            >>> list(DCRNN(dataset.schema, units=96).transfer_weights(features))
            ['conversion']
        """
        layers = {label: self.get_layer(f"{label}_transfer") for label in self._receivers}
        if not layers:
            return {}
        read = keras.Model(self.inputs, {label: layer.input for label, layer in layers.items()})(features)
        return {label: layer.attention(read[label]) for label, layer in layers.items()}


def _widths(labels: Sequence[str], units: int, sharing: float, axis: str) -> dict[str, int]:
    """Width of each part of the state, by "shared" and label; parts without a unit are left out.

    Raises:
        ValueError: See `DCRNN`.
    """
    if isinstance(sharing, bool) or not isinstance(sharing, Real) or not 0.0 <= sharing <= 1.0:
        raise ValueError(f"sharing must be a number from 0 (nothing shared) to 1 (everything), is {sharing!r}")
    if _SHARED in labels:
        raise ValueError(f"a label cannot be called {_SHARED!r}, the name of the part that all tasks share")
    shared = round(sharing * units)
    if units < 1 or (0.0 < sharing < 1.0 and not 0 < shared < units):
        raise ValueError(
            f"units={units} with sharing={sharing} leaves nothing to one of the two parts; give more units"
        )
    if axis == "task" and not shared:
        raise ValueError("axis='task' runs along the funnel from the shared part: sharing must be above 0")
    widths = {_SHARED: shared, **dict.fromkeys(labels, units - shared)}
    return {part: width for part, width in widths.items() if width}


def _filter(units: int, dtype: Any) -> FeatureFilter:
    return FeatureFilter(units, dtype=dtype, name="input_filter")


def _projections(x: Any, widths: Mapping[str, int], dtype: Any) -> dict[str, Any]:
    """`P x` of every part, by one product."""
    # Scaled by the fan-in alone, which all parts have in common: each is drawn as it would be by itself.
    joint = keras.layers.Dense(
        sum(widths.values()), use_bias=False, kernel_initializer="lecun_uniform", dtype=dtype, name="projections"
    )(x)
    ends = [sum(list(widths.values())[: i + 1]) for i in range(len(widths) - 1)]
    return dict(zip(widths, ops.split(joint, ends, axis=-1) if ends else [joint], strict=True))


def _fields(embedded: EmbeddedFeatures, read: Sequence[Any], dtype: Any) -> Any:
    """All fields of one width, `[batch, fields, width]`; numbers and histories are projected to a field each.

    Raises:
        ValueError: Fields of several widths, or none.
    """
    if len(embedded.fields) != 1:
        widths = ", ".join(str(group.shape[-1]) for group in embedded.fields)
        raise ValueError(f"axis='field' needs embeddings, all of one width; the widths are: {widths or 'none'}")
    width = embedded.fields[0].shape[-1]
    others = {"numeric": embedded.numeric} if embedded.numeric is not None else {}
    others |= {f"history_{i}": history for i, history in enumerate(read)}
    if not others:
        return embedded.fields[0]
    fields = [keras.layers.Dense(width, dtype=dtype, name=f"{name}_field")(value) for name, value in others.items()]
    return keras.layers.Concatenate(axis=1)([embedded.fields[0], ops.stack(fields, axis=1)])


def _filtered_fields(fields: Any, units: int | None, dtype: Any) -> Any:
    if not units:
        return fields
    filtered = _filter(units, dtype)(keras.layers.Flatten()(fields))
    return ops.reshape(filtered, (-1, *fields.shape[1:]))


def _crossed(
    sources: Mapping[str, Any], widths: Mapping[str, int], recurrence: Mapping[str, Any], axis: str
) -> dict[str, Any]:
    """Each part behind its recurrence, `[batch, d]`; the private ones read the shared one's states."""
    parts: dict[str, Any] = {}
    states: list[Any] = []
    for part, width in widths.items():
        is_shared = part == _SHARED
        layer = RecurrentCross(
            units=width if axis == "field" else None, return_states=is_shared, name=f"{part}_cross", **recurrence
        )
        found = layer([sources[part], *states] if states else sources[part])
        parts[part], states = (found[0], found[1:]) if is_shared else (found, states)
    return parts


def _joined(parts: Mapping[str, Any], label: str, dropout: float, dtype: Any) -> Any:
    """`[s ; p_t]` of a task, dropped out."""
    own = [parts[part] for part in (_SHARED, label) if part in parts]
    features = keras.layers.Concatenate()(own) if len(own) > 1 else own[0]
    return Dropout(dropout, dtype=dtype)(features) if dropout else features


def _along_the_funnel(
    schema: Schema, parts: Mapping[str, Any], cell: str, dropout: float, dtype: Any
) -> dict[str, Any]:
    """As `_joined`, with each task's step of a recurrence along the funnel in place of the shared part."""
    order = list(_funnel(schema).static_order())
    along = RecurrentCross(axis="task", cell=cell, steps=len(order), dtype=dtype, name="along_funnel")
    walked = keras.ops.unstack(along(parts[_SHARED]), axis=1)  # of each task [batch, d_s]
    return {
        label: _joined({**parts, _SHARED: of_task}, label, dropout, dtype)
        for label, of_task in zip(order, walked, strict=True)
    }


def _funnel(schema: Schema) -> TopologicalSorter[str]:
    """Labels, each behind its parent."""
    return TopologicalSorter({label.name: [label.parent] if label.parent else [] for label in schema.labels})


def _logits(
    schema: Schema, features: Mapping[str, Any], transfer: bool, units: Sequence[int], dropout: float, dtype: Any
) -> dict[str, Any]:
    """A tower per label, transfer from the parent's, and a logit head."""
    parents = {label.name: label.parent for label in schema.labels}
    found: dict[str, Any] = {}
    logits = {}
    for label in _funnel(schema).static_order():
        tower = MLP(units, dropout=dropout, dtype=dtype, name=f"{label}_tower")
        found[label] = tower(features[label])  # [batch, k]
        parent = parents[label]
        if transfer and parent:
            heard = InformationTransfer(dtype=dtype, name=f"{label}_transfer")
            found[label] = heard((found[label], found[parent]))
        logits[label] = keras.layers.Dense(1, dtype=dtype, name=f"{label}_logit")(found[label])
    return logits
