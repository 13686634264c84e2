"""How a field of a synthetic world looks from outside: its column in the log, its declaration in the schema."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.schema import Categorical, Feature, MultiCategorical, Numeric
from pipelines.synthetic_history import HISTORY
from pipelines.synthetic_presets import Field
from pipelines.synthetic_world import Population, normal_scores


class RawColumn:
    """Makes the raw values of a field from its ids.

    Args:
        field: The field.
        population: Knows the lists, and how many users and items there are.
    """

    def __init__(self, field: Field, population: Population) -> None:
        self._field = field
        if field.kind == "numeric":
            mean, deviation = field.scale
            self._numbers = np.append(np.round(np.exp(mean + deviation * normal_scores(field.size)), 2), np.nan)
        if field.kind in ("string", "multi"):
            self._texts = pa.array(field.labels or _texts(field, population), pa.string())
        if field.kind == "multi":
            self._offsets, self._values = population.lists[field.name]

    def array(self, ids: np.ndarray) -> pa.Array:
        """The column of the log, `[rows]`; strings are dictionary-encoded."""
        field = self._field
        if field.kind == "int":
            return pa.array(ids.astype(np.int32) + np.int32(field.first))
        if field.kind == "numeric":
            return pa.array(self._numbers[ids], mask=ids == field.size if field.missing else None)
        if field.kind == "multi":
            return self._lists(ids)
        known = pa.array(ids.astype(np.int32), mask=ids == field.size if field.missing else None)
        return pa.DictionaryArray.from_arrays(known, self._texts)

    def _lists(self, owners: np.ndarray) -> pa.Array:
        starts, lengths = self._offsets[owners], (self._offsets[1:] - self._offsets[:-1])[owners]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = self._values[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)]
        words = pa.DictionaryArray.from_arrays(pa.array(values.astype(np.int32)), self._texts)
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), words)


class HistoryColumn:
    """Makes the click histories, as lists of the raw values of the item's field.

    Args:
        field: The item's field.
        population: As for `RawColumn`.
    """

    def __init__(self, field: Field, population: Population) -> None:
        self._values = RawColumn(field, population)
        self._none = field.size

    def array(self, ids: np.ndarray) -> pa.Array:
        """The column of the log, `[rows]`, from ids by age; the oldest value stands first."""
        oldest_first = ids[:, ::-1]
        present = oldest_first != self._none
        offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
        values = self._values.array(oldest_first[present])
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def declare(field: Field) -> Feature:
    """The field's declaration in the schema."""
    if field.kind == "multi":
        return MultiCategorical(name=field.name, table=field.table, max_length=field.max_length)
    if field.kind == "numeric":
        missing: Literal["mean", "error"] = "mean" if field.missing else "error"
        return Numeric(name=field.name, transform="log1p", buckets=field.buckets, missing=missing)
    return Categorical(name=field.name, dtype=_dtype(field), table=field.table)


def declare_history(field: Field, length: int) -> MultiCategorical:
    """The declaration of a click history that lists the values of an item's field."""
    table = field.table or field.name
    return MultiCategorical(
        name=HISTORY, dtype=_dtype(field), table=table, max_length=length, keep="last", ordered=True
    )


def _dtype(field: Field) -> Literal["string", "int"]:
    return "int" if field.kind == "int" else "string"


def _texts(field: Field, population: Population) -> list[str]:
    count = field.size or population.size(field.name)
    return [f"{field.prefix or field.name}_{i:0{len(str(count - 1))}d}" for i in range(count)]
