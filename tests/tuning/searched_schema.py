"""A fitted schema with a funnel, for tests that need no dataset."""

from __future__ import annotations

from pipelines import Categorical, Label, Numeric, Schema
from pipelines.schema import Fitted, FittedNumeric, HashSplit

FUNNEL = (Label(name="click"), Label(name="conversion", parent="click"))


def schema_of(labels: tuple[Label, ...] = FUNNEL) -> Schema:
    return Schema(
        features=(Categorical(name="user", dtype="int"), Categorical(name="item", dtype="int"), Numeric(name="price")),
        labels=labels,
        split=HashSplit(key="row"),
        fitted=Fitted(tables={"user": 20, "item": 30}, numeric={"price": FittedNumeric(mean=0.0, std=1.0)}),
    )
