"""From a schema to the inputs of a model and their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from mtlzoo.layers import EmbeddingTable, PeriodicEmbedding, PiecewiseLinearEmbedding, WeightedPooling
from pipelines.schema import Categorical, Numeric, Schema
from pipelines.vocabulary import standardize_numbers, transform_numbers

NUMERIC_EMBEDDINGS = ("piecewise_linear", "periodic")


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
            multi-valued ones, pooled, then embedded numbers.
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
    numeric_embedding: str | None = None,
    dtype: Any = None,
    prefix: str = "",
) -> EmbeddedFeatures:
    """Embeds all categorical features, one table and one gather per embedding width, and numbers where that is asked.

    Args:
        schema: Fitted schema.
        inputs: From `model_inputs`.
        embedding_dim: Width of features whose declaration leaves it open.
        numeric_embedding: See `embedded_numbers`. The numbers themselves stay, beside their embeddings.
        dtype: Policy of the layers.
        prefix: Prefix of the layer names, for models with several sets of embeddings.

    Returns:
        The embedded features.

    Raises:
        ValueError: An unknown `numeric_embedding`.
    """
    ids = _by_width((*schema.packed_categorical, *schema.multis), embedding_dim)
    numbers = _by_width(embedded_numbers(schema, numeric_embedding), embedding_dim)
    groups: list[Any] = []
    lists: dict[str, Any] = {}
    for width in {**ids, **numbers}:
        parts = []
        if width in ids:
            fields, found = _embed_width(schema, inputs, ids[width], width, dtype, f"{prefix}embedding_{width}")
            parts.append(fields)
            lists |= found
        if width in numbers:
            layer = _number_layer(schema, numbers[width], numeric_embedding, width, dtype, f"{prefix}numbers_{width}")
            parts.append(layer(_numbers(schema, inputs["numeric"], numbers[width])))
        groups.append(parts[0] if len(parts) == 1 else keras.layers.Concatenate(axis=1, dtype=dtype)(parts))
    names = fields_by_width(schema, embedding_dim, numeric_embedding)
    return EmbeddedFeatures(tuple(groups), inputs.get("numeric"), tuple(map(tuple, names.values())), lists)


def embedded_numbers(schema: Schema, numeric_embedding: str | None) -> tuple[Numeric, ...]:
    """The numeric features that get an embedding beside that of their bucket.

    Args:
        schema: Fitted schema.
        numeric_embedding: `None`: none. `"periodic"`: all that are fed as floats. `"piecewise_linear"`: those of them
            that have bucket edges, which are the knots (`buckets` with `keep_value` in the schema).

    Raises:
        ValueError: Another `numeric_embedding`.
    """
    if numeric_embedding is None:
        return ()
    if numeric_embedding not in NUMERIC_EMBEDDINGS:
        known = ", ".join(map(repr, NUMERIC_EMBEDDINGS))
        raise ValueError(f"numeric_embedding must be None or one of {known}, is {numeric_embedding!r}")
    fed = tuple(feature for feature in schema.numerics if feature.has_value)
    if numeric_embedding == "periodic":
        return fed
    return tuple(feature for feature in fed if len(_knots(schema, feature)))


def fields_by_width(
    schema: Schema, embedding_dim: int | None, numeric_embedding: str | None = None
) -> dict[int, list[str]]:
    """Per embedding width the names of its fields, as `embed_features` puts them side by side.

    An embedded number is called `<feature>:value`, since its bucket has the name of the feature.

    Raises:
        ValueError: The width of a field is left open by the schema, and by `embedding_dim`.
    """
    fields: dict[int, list[str]] = {}
    for width, features in _by_width((*schema.packed_categorical, *schema.multis), embedding_dim).items():
        fields[width] = [feature.name for feature in features]
    for width, numbers in _by_width(embedded_numbers(schema, numeric_embedding), embedding_dim).items():
        fields.setdefault(width, []).extend(f"{feature.name}:value" for feature in numbers)
    return fields


def _by_width(features: Sequence[Any], embedding_dim: int | None) -> dict[int, list[Any]]:
    by_width: dict[int, list[Any]] = {}
    for feature in features:
        width = feature.embedding_dim or embedding_dim
        if width is None:
            raise ValueError(f"the width of {feature.name}'s embedding is unknown: the model has no embedding_dim")
        by_width.setdefault(width, []).append(feature)
    return by_width


def _knots(schema: Schema, feature: Numeric) -> list[float]:
    """Bucket edges of a feature in the scale in which models get it, rising."""
    assert schema.fitted is not None
    fitted = schema.fitted.numeric[feature.name]
    edges = transform_numbers(feature, np.array(fitted.edges, np.float32))
    return np.unique(standardize_numbers(feature, fitted, edges)).tolist()


def _numbers(schema: Schema, numeric: Any, features: list[Numeric]) -> Any:
    """The columns of some numeric features, `[batch, features]`."""
    places = [schema.packed_numeric.index(feature.name) for feature in features]
    whole = places == list(range(len(schema.packed_numeric)))
    return numeric if whole else keras.ops.take(numeric, places, axis=1)


def _number_layer(
    schema: Schema, features: list[Numeric], kind: str | None, width: int, dtype: Any, name: str
) -> keras.layers.Layer:
    if kind == "periodic":
        return PeriodicEmbedding(width, dtype=dtype, name=name)
    return PiecewiseLinearEmbedding([_knots(schema, f) for f in features], width, dtype=dtype, name=name)


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
