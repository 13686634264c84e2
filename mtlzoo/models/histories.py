"""Lists in the order of time, read value by value and crossed with a feature of the impression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlzoo.layers import RecurrentCross
from mtlzoo.models.inputs import EmbeddedFeatures
from pipelines.schema import Categorical, MultiCategorical, Schema


def read_histories(
    schema: Schema,
    inputs: Mapping[str, Any],
    embedded: EmbeddedFeatures,
    histories: str | Sequence[str],
    cell: str,
    units: int,
    dtype: Any = None,
) -> list[Any]:
    """Reads each history by a recurrent cross over its values.

    Args:
        schema: Fitted schema.
        inputs: From `model_inputs`.
        embedded: From `embed_features`.
        histories: `"ordered"`, or pairs `"list:feature"`; see `DCRNN`.
        cell: Of the recurrence.
        units: Width of its state.
        dtype: Policy of the layers.

    Returns:
        Per history `[batch, units + width of its embedding]`.

    Raises:
        ValueError: See `history_pairs`.

    Source: our design.
    """
    weights = {feature.name: feature.weights_name for feature in schema.multis}
    read = []
    for history, candidate in history_pairs(schema, histories).items():
        # A mask, since small weights would become 0 in half precision.
        there = inputs[weights[history]] > 0
        layer = RecurrentCross(axis="sequence", cell=cell, units=units, dtype=dtype, name=f"{history}_history")
        read.append(layer([embedded.lists[history], there, embedded.field(candidate)]))
    return read


def history_pairs(schema: Schema, given: str | Sequence[str]) -> dict[str, str]:
    """The histories to read, and what each is crossed with.

    Args:
        schema: Its lists and their order.
        given: As in `DCRNN`.

    Returns:
        By name of a list the name of a single-valued feature.

    Raises:
        ValueError: A name that is no list, a list without order or named twice, a feature that is none, or a list
            without a feature of the same table to cross it with.
    """
    lists = {feature.name: feature for feature in schema.multis}
    singles = {feature.name: feature for feature in schema.packed_categorical}
    if given == "ordered":
        return {name: _candidate_of(feature, schema) for name, feature in lists.items() if feature.ordered}
    pairs = {}
    for pair in [given] if isinstance(given, str) else given:
        name, _, candidate = str(pair).partition(":")
        if name not in lists:
            raise ValueError(f"histories: {name!r} is no multi-valued feature; there are {', '.join(lists) or 'none'}")
        if not lists[name].ordered:
            raise ValueError(f"histories: {name!r} has no order; declare `ordered: true` if it is sorted by time")
        if candidate and candidate not in singles:
            raise ValueError(f"histories: {candidate!r} is no single-valued feature; there are {', '.join(singles)}")
        if name in pairs:
            raise ValueError(f"histories: {name!r} is there twice; one feature crosses it")
        pairs[name] = candidate or _candidate_of(lists[name], schema)
    return pairs


def _candidate_of(feature: MultiCategorical, schema: Schema) -> str:
    for other in schema.packed_categorical:
        if isinstance(other, Categorical) and other.table_name == feature.table_name:
            return other.name
    raise ValueError(
        f"histories: no single-valued feature shares the table {feature.table_name!r} of {feature.name!r}; name the "
        f"one to cross it with, as '{feature.name}:FEATURE', or read no history: histories=()"
    )
