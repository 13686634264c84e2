"""What one impression is: its features, its labels and their funnel, its keys, its split.

The schema is the one declaration that drives vocabularies, the writer, the parser, the inputs of every model and the
serving signature. It is written by hand as `schema.yaml`; converting a raw log fills in its `fitted` section, with what
only the training split can tell (table sizes, means, bucket edges).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.schema_base import Declaration, checked_name
from pipelines.schema_features import (
    FIRST_ID,
    MISSING,
    OUT_OF_VOCABULARY,
    Categorical,
    Feature,
    MultiCategorical,
    Numeric,
)
from pipelines.schema_split import FileSplit, HashSplit, Split, TimeSplit

__all__ = [
    "FIRST_ID",
    "MISSING",
    "OUT_OF_VOCABULARY",
    "Categorical",
    "Feature",
    "FileSplit",
    "Fitted",
    "FittedNumeric",
    "HashSplit",
    "Keys",
    "Label",
    "MultiCategorical",
    "Numeric",
    "Schema",
    "Split",
    "Target",
    "TimeSplit",
]


class Label(Declaration):
    """A binary label, and its place in the funnel.

    Attributes:
        name: Name of the task: the probability of this label given its parent.
        parent: The label without which this one cannot happen (conversion's parent is click).
        column: Raw column, if it differs from the name.
        positive: Raw value that counts as 1, everything else as 0. `None`: the column holds 0 and 1 (or booleans).
        joint: Name of the task "this label and all its ancestors happen"; only with a parent. Defaults to `ctcvr`
            where one label has a parent, to `joint_<name>` where several have.
    """

    name: str
    parent: str | None = None
    column: str | None = None
    positive: str | int | float | None = None
    joint: str | None = None

    _name = field_validator("name")(checked_name)

    @property
    def source(self) -> str:
        """The raw column that the label is read from."""
        return self.column or self.name


class Keys(Declaration):
    """Columns that are no features: the group of GAUC (usually the user) and the weight of an impression."""

    group: str | None = None
    weight: str | None = None


class FittedNumeric(Declaration):
    """What the training split says of a numeric feature, after its transform: mean, deviation, bucket edges."""

    mean: float
    std: float
    edges: tuple[float, ...] = ()


class Fitted(Declaration):
    """What conversion has learned from the training split.

    Attributes:
        tables: Rows of each embedding table, by table name.
        numeric: Statistics of each numeric feature, by its name.
        vocabularies: Digest of each vocabulary (`Vocabulary.digest`), by table name. Hash buckets have none, and none
            is known of a dataset that was converted before there were digests.
    """

    tables: dict[str, int]
    numeric: dict[str, FittedNumeric] = {}
    vocabularies: dict[str, str] = {}


@dataclass(frozen=True)
class Target:
    """One thing to predict, made of labels.

    Attributes:
        name: Key in the labels and sample weights of a batch, and in the predictions of a model.
        label: The label that it ends in.
        positive: Labels that must all be 1 for the target to be 1.
        given: Labels that must be 1 for an impression to be in the target's population; empty: all impressions.
    """

    name: str
    label: str
    positive: tuple[str, ...]
    given: tuple[str, ...]

    @property
    def is_joint(self) -> bool:
        """Whether it is the probability that the label and all its ancestors happen."""
        return len(self.positive) > 1


class Schema(Declaration):
    """Features, labels, keys and split of an impression log, and what conversion has fitted. See the module."""

    version: Literal[1] = 1
    features: tuple[Feature, ...] = Field(min_length=1)
    labels: tuple[Label, ...] = Field(min_length=1)
    keys: Keys = Keys()
    split: Split
    funnel_violations: Literal["error", "drop"] = "error"
    fitted: Fitted | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Schema:
        _check_unique_names(self)
        _check_funnel(self.labels)
        _check_tables(self)
        label_columns = {label.source: label.name for label in self.labels}
        for feature in self.features:
            if feature.source in label_columns:
                raise ValueError(
                    f"feature {feature.name!r} reads column {feature.source!r}, which is the label "
                    f"{label_columns[feature.source]!r}: a leak; remove the feature"
                )
        return self

    @property
    def categoricals(self) -> tuple[Categorical, ...]:
        """Single- and multi-valued categorical features, in order."""
        return tuple(f for f in self.features if isinstance(f, Categorical))

    @property
    def singles(self) -> tuple[Categorical, ...]:
        """Single-valued categorical features, in order."""
        return tuple(f for f in self.categoricals if not isinstance(f, MultiCategorical))

    @property
    def multis(self) -> tuple[MultiCategorical, ...]:
        """Multi-valued categorical features, in order."""
        return tuple(f for f in self.features if isinstance(f, MultiCategorical))

    @property
    def numerics(self) -> tuple[Numeric, ...]:
        """Numeric features, in order."""
        return tuple(f for f in self.features if isinstance(f, Numeric))

    @property
    def packed_categorical(self) -> tuple[Categorical | Numeric, ...]:
        """Features behind the columns of the packed `categorical` tensor: single-valued, then bucketed numerics."""
        return self.singles + tuple(f for f in self.numerics if f.buckets is not None)

    @property
    def packed_numeric(self) -> tuple[str, ...]:
        """Columns of the packed `numeric` tensor: each float, then its missing indicator if it has one."""
        columns = []
        for feature in self.numerics:
            columns += [feature.name] if feature.has_value else []
            columns += [f"{feature.name}:missing"] if feature.indicator else []
        return tuple(columns)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What a model predicts: every label given its parent, then every label with a parent jointly."""
        by_name = {label.name: label for label in self.labels}

        def ancestors(label: Label) -> tuple[str, ...]:
            return () if label.parent is None else (*ancestors(by_name[label.parent]), label.parent)

        children = [label for label in self.labels if label.parent is not None]
        conditional = [Target(label.name, label.name, (label.name,), ancestors(label)) for label in self.labels]
        joint = [
            Target(_joint_name(label, len(children)), label.name, (*ancestors(label), label.name), ())
            for label in children
        ]
        return (*conditional, *joint)

    def table_size(self, feature: Categorical | Numeric) -> int:
        """Rows of the feature's embedding table, out-of-vocabulary and missing rows included.

        Raises:
            ValueError: The schema has not been fitted by a conversion.
        """
        if self.fitted is None:
            raise ValueError(
                "this schema has not been fitted: it does not know its table sizes yet. Convert the raw log first "
                "(`mtlzoo data convert`), then use the schema of the dataset: pipelines.open_dataset(DIR).schema"
            )
        return self.fitted.tables[feature.table_name]

    def select(self, features: Sequence[str] | None = None, without: Sequence[str] = ()) -> Schema:
        """The schema of a model that sees only some of the features.

        Args:
            features: Names of those that it sees; `None`: all.
            without: Names of those among them that it does not see.

        Returns:
            The schema with these features, in the order that they have here; labels, keys and split stay.

        Raises:
            ValueError: A name that is no feature, or no feature is left.

        Example:
            >>> [feature.name for feature in dataset.schema.select(without=["user_id"]).features]
            ['item_id', 'price']
        """
        known = [feature.name for feature in self.features]
        wanted = known if features is None else features
        unknown = [name for name in (*wanted, *without) if name not in known]
        if unknown:
            raise ValueError(f"there is no feature {', '.join(unknown)}; the features are {', '.join(known)}")
        kept = tuple(f for f in self.features if f.name in wanted and f.name not in without)
        if not kept:
            raise ValueError(f"no feature is left to learn from; the features are {', '.join(known)}")
        return self.model_copy(update={"features": kept, "fitted": self.fitted and _fitted_of(kept, self.fitted)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data (dict, list, str, numbers) without defaults; `Schema.model_validate` reads it back."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for plain, feature in zip(data["features"], self.features, strict=True):
            plain["type"] = feature.type
        data["split"]["by"] = self.split.by
        return data

    def digest(self) -> str:
        """SHA-256 of the schema's content, as 16 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fitted_of(features: Sequence[Categorical | Numeric], fitted: Fitted) -> Fitted:
    tables = {feature.table_name for feature in features}
    names = {feature.name for feature in features}
    return Fitted(
        tables={table: rows for table, rows in fitted.tables.items() if table in tables},
        numeric={name: numbers for name, numbers in fitted.numeric.items() if name in names},
        vocabularies={table: digest for table, digest in fitted.vocabularies.items() if table in tables},
    )


def _joint_name(label: Label, siblings: int) -> str:
    return label.joint or ("ctcvr" if siblings == 1 else f"joint_{label.name}")


def _check_unique_names(schema: Schema) -> None:
    names = [f.name for f in schema.features] + [f.weights_name for f in schema.multis]
    names += [target.name for target in schema.targets] if _funnel_is_closed(schema.labels) else []
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the name {name!r} stands twice among the features and tasks")
        seen.add(name)


def _funnel_is_closed(labels: tuple[Label, ...]) -> bool:
    try:
        _check_funnel(labels)
    except ValueError:
        return False
    return True


def _check_funnel(labels: tuple[Label, ...]) -> None:
    known: set[str] = set()
    for label in labels:
        if label.parent is not None and label.parent not in known:
            raise ValueError(
                f"label {label.name!r}: its parent {label.parent!r} must be a label that stands before it; "
                f"before it stand {sorted(known) or 'none'}"
            )
        if label.joint is not None and label.parent is None:
            raise ValueError(f"label {label.name!r} has `joint: {label.joint}` but no parent to be joint with")
        known.add(label.name)


def _check_tables(schema: Schema) -> None:
    shared = ("dtype", "hash_buckets", "min_count", "max_size", "embedding_dim")
    first: dict[str, Categorical] = {}
    for feature in schema.categoricals:
        other = first.setdefault(feature.table_name, feature)
        for field in shared:
            if getattr(feature, field) != getattr(other, field):
                raise ValueError(
                    f"features {other.name!r} and {feature.name!r} share the table {feature.table_name!r} but differ "
                    f"in `{field}`: {getattr(other, field)!r} and {getattr(feature, field)!r}"
                )
    for numeric in schema.numerics:
        if numeric.buckets is not None and numeric.table_name in first:
            raise ValueError(
                f"feature {first[numeric.table_name].name!r} uses the table {numeric.table_name!r}, which holds the "
                f"buckets of the numeric feature {numeric.name!r}; give it another `table`"
            )
