"""From a schema to the inputs of a model and their embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from mtlzoo.layers import EmbeddingTable, WeightedPooling
from pipelines.schema import Categorical, Numeric, Schema


def model_inputs(schema: Schema) -> dict[str, Any]:
    """Symbolic inputs, as `pipelines` packs a batch.

    Returns:
        `categorical` int32 `[batch, n]`, `numeric` float32 `[batch, m]` (each only where there are such features), and
        per multi-valued feature its ids int32 `[batch, length]` and `<name>_weights` float32 `[batch, length]`.
    """
    inputs = {}
    if schema.packed_categorical:
        inputs["categorical"] = keras.Input((len(schema.packed_categorical),), dtype="int32", name="categorical")
    if schema.packed_numeric:
        inputs["numeric"] = keras.Input((len(schema.packed_numeric),), dtype="float32", name="numeric")
    for feature in schema.multis:
        inputs[feature.name] = keras.Input((feature.max_length,), dtype="int32", name=feature.name)
        inputs[feature.weights_name] = keras.Input((feature.max_length,), dtype="float32", name=feature.weights_name)
    return inputs


@dataclass(frozen=True)
class EmbeddedFeatures:
    """Features as a model works with them.

    Attributes:
        fields: Per embedding width a tensor `[batch, fields, width]`: single-valued and bucketed fields, then
            multi-valued ones, pooled.
        numeric: Float features `[batch, m]`, or `None`.
        names: Per width the names of the fields, in the order of `fields`.
        lists: By name of a multi-valued feature its values one by one, `[batch, length, width]`, before they are
            pooled; anything may stand at the padding.
    """

    fields: tuple[Any, ...]
    numeric: Any | None
    names: tuple[tuple[str, ...], ...]
    lists: dict[str, Any]

    def field(self, name: str) -> Any:
        """One field, `[batch, width]`."""
        group = next(i for i, names in enumerate(self.names) if name in names)
        return self.fields[group][:, self.names[group].index(name)]

    def flat(self) -> Any:
        """Everything side by side, `[batch, D]`."""
        parts = [keras.layers.Flatten()(group) for group in self.fields]
        parts += [self.numeric] if self.numeric is not None else []
        return parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)


def embed_features(
    schema: Schema,
    inputs: dict[str, Any],
    embedding_dim: int,
    dtype: Any = None,
    prefix: str = "",
) -> EmbeddedFeatures:
    """Embeds all categorical features: one table and one gather per embedding width.

    Args:
        schema: Fitted schema.
        inputs: From `model_inputs`.
        embedding_dim: Width of features whose declaration leaves it open.
        dtype: Policy of the layers.
        prefix: Prefix of the layer names, for models with several sets of embeddings.

    Returns:
        The embedded features.
    """
    by_width: dict[int, list[Categorical | Numeric]] = {}
    for feature in (*schema.packed_categorical, *schema.multis):
        by_width.setdefault(feature.embedding_dim or embedding_dim, []).append(feature)
    groups: list[Any] = []
    lists: dict[str, Any] = {}
    for width, features in by_width.items():
        fields, found = _embed_width(schema, inputs, features, width, dtype, f"{prefix}embedding_{width}")
        groups.append(fields)
        lists |= found
    names = tuple(tuple(f.name for f in features) for features in by_width.values())
    return EmbeddedFeatures(tuple(groups), inputs.get("numeric"), names, lists)


def _embed_width(
    schema: Schema,
    inputs: dict[str, Any],
    features: list[Categorical | Numeric],
    width: int,
    dtype: Any,
    name: str,
) -> tuple[Any, dict[str, Any]]:
    """All features of one width through one table: `[batch, fields, width]`, and the lists among them, unpooled."""
    packed = list(schema.packed_categorical)
    singles = [f for f in features if f in packed]
    multis = [f for f in schema.multis if f in features]
    table_names = list(dict.fromkeys(f.table_name for f in features))
    sizes = {f.table_name: schema.table_size(f) for f in features}

    ids, columns = [], []
    if singles:
        places = [packed.index(f) for f in singles]
        whole = places == list(range(len(packed)))
        ids.append(inputs["categorical"] if whole else keras.ops.take(inputs["categorical"], places, axis=1))
        columns += [table_names.index(f.table_name) for f in singles]
    for multi in multis:
        ids.append(inputs[multi.name])
        columns += [table_names.index(multi.table_name)] * multi.max_length
    all_ids = ids[0] if len(ids) == 1 else keras.layers.Concatenate(dtype="int32", name=f"{name}_ids")(ids)

    table = EmbeddingTable([sizes[t] for t in table_names], columns, width, dtype=dtype, name=name)
    rows = table(all_ids)  # [batch, singles + list lengths, width]
    if not multis:
        return rows, {}
    lists = {}
    parts = [rows[:, : len(singles)]] if singles else []
    start = len(singles)
    for multi in multis:
        stop = start + multi.max_length
        pooling = WeightedPooling(multi.combiner, dtype=dtype, name=f"{name}_{multi.name}_pooled")
        lists[multi.name] = rows[:, start:stop]  # [batch, length, width]
        pooled = pooling((lists[multi.name], inputs[multi.weights_name]))  # [batch, width]
        parts.append(keras.ops.expand_dims(pooled, 1))
        start = stop
    if len(parts) == 1:
        return parts[0], lists
    return keras.layers.Concatenate(axis=1, dtype=dtype, name=f"{name}_fields")(parts), lists
