"""A fitted schema of a few fields, for tests that need no dataset."""

from __future__ import annotations

from pipelines import Categorical, Label, Numeric, Schema
from pipelines.schema import Fitted, FittedNumeric, HashSplit

IDS = 30  # rows of each field's embedding table


def small_schema(labels: tuple[Label, ...], fields: int) -> Schema:
    """Single-valued fields `field_0`, `field_1`, ... and the number `price`."""
    names = [f"field_{i}" for i in range(fields)]
    return Schema(
        features=(*(Categorical(name=name, dtype="int") for name in names), Numeric(name="price")),
        labels=labels,
        split=HashSplit(key="row"),
        fitted=Fitted(tables=dict.fromkeys(names, IDS), numeric={"price": FittedNumeric(mean=0.0, std=1.0)}),
    )
