"""What one impression is: its features, its labels and their funnel, its keys, its split.

The schema is the one declaration that drives vocabularies, the writer, the parser, the inputs of every model and the
serving signature. It is written by hand as `schema.yaml`; converting a raw log fills in its `fitted` section, with what
only the training split can tell (table sizes, means, bucket edges).

Ids, the same for every categorical feature:

    0        out of vocabulary: a value that the training split did not have (or had too rarely)
    1        missing: null, or one of the feature's `missing_values`
    2 ...    the vocabulary in order of falling frequency, or the hash buckets, or the quantile buckets
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

OUT_OF_VOCABULARY = 0
MISSING = 1
FIRST_ID = 2

RESERVED_NAMES = frozenset({"categorical", "numeric"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*\Z")


def _checked_name(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(
            f"{name!r} is no usable name: use letters, digits and '_' (and give the raw column as `column:` if it differs)"
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is reserved for the packed batch; give the feature another name and set `column:`")
    return name


class _Declaration(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Feature(_Declaration):
    name: str
    column: str | None = None
    embedding_dim: int | None = Field(default=None, ge=1)

    _name = field_validator("name")(_checked_name)

    @property
    def source(self) -> str:
        """The raw column that the feature is read from."""
        return self.column or self.name


class Categorical(_Feature):
    """One id per impression, from a string or an integer column.

    Attributes:
        dtype: `"string"` or `"int"`, the type of the raw values and of the serving input.
        table: Name of the embedding table and vocabulary. Features that name the same table share both.
        hash_buckets: Number of hash buckets instead of a vocabulary (`tf.strings.to_hash_bucket_fast`).
        min_count: Values rarer than this in the training split are out of vocabulary.
        max_size: At most this many values, the most frequent ones, enter the vocabulary.
        missing_values: Raw values that mean "missing"; null always does.
        embedding_dim: Width of the table; `None` leaves it to the model.
    """

    type: Literal["categorical"] = "categorical"
    dtype: Literal["string", "int"] = "string"
    table: str | None = None
    hash_buckets: int | None = Field(default=None, ge=1)
    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=1)
    missing_values: tuple[str | int, ...] = ("",)

    @field_validator("table")
    @classmethod
    def _table_name(cls, table: str | None) -> str | None:
        return None if table is None else _checked_name(table)

    @property
    def table_name(self) -> str:
        """The table that the ids of this feature index."""
        return self.table or self.name


class MultiCategorical(Categorical):
    """A list of ids per impression, padded to `max_length`.

    Attributes:
        max_length: Longer lists are cut to this length.
        keep: Which end of a longer list stays: `"first"` or `"last"` (the most recent of a history).
        combiner: How the embeddings of a list become one: `"mean"`, `"sum"` or `"sqrtn"`.
        weights: Raw column with one float per value; `None` weighs every value 1.
        separator: What parts the values where the raw column is a string (CSV).
    """

    type: Literal["multi_categorical"] = "multi_categorical"  # type: ignore[assignment]
    max_length: int = Field(ge=1)
    keep: Literal["first", "last"] = "first"
    combiner: Literal["mean", "sum", "sqrtn"] = "mean"
    weights: str | None = None
    separator: str = Field(default="|", min_length=1)

    @property
    def weights_name(self) -> str:
        """Key of the padded weights (0 at the padding) in a batch."""
        return f"{self.name}_weights"


class Numeric(_Feature):
    """A number per impression: as a float, as a bucket id with an embedding, or both.

    Attributes:
        transform: `"none"`, `"log1p"` (raw values above -1) or `"symlog"`, sign(x) log(1 + |x|).
        standardize: Subtract the mean and divide by the standard deviation of the transformed training split.
        buckets: Number of quantile buckets (fitted on the training split); ids 2 ... of a table of the feature's own.
        keep_value: Feed the float too when there are buckets. Without buckets the float is always fed.
        missing: What null and NaN become: `"error"` (conversion stops and says where), `"mean"`, or a raw value.
            A bucketed missing value has its own id whatever this says, unless it is a number.
        indicator: Add a column `<name>:missing` that is 1 where the value was missing.
    """

    type: Literal["numeric"] = "numeric"
    transform: Literal["none", "log1p", "symlog"] = "none"
    standardize: bool = True
    buckets: int | None = Field(default=None, ge=2)
    keep_value: bool = False
    missing: Literal["error", "mean"] | float = "error"
    indicator: bool = False

    @property
    def table_name(self) -> str:
        """The table that the bucket ids of this feature index."""
        return self.name

    @property
    def has_value(self) -> bool:
        """Whether the float itself is an input of the model."""
        return self.buckets is None or self.keep_value


Feature = Annotated[Categorical | MultiCategorical | Numeric, Field(discriminator="type")]


class Label(_Declaration):
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

    _name = field_validator("name")(_checked_name)

    @property
    def source(self) -> str:
        """The raw column that the label is read from."""
        return self.column or self.name


class Keys(_Declaration):
    """Columns that are no features: the group of GAUC (usually the user) and the weight of an impression."""

    group: str | None = None
    weight: str | None = None


class FileSplit(_Declaration):
    """Given files: each raw file belongs to the split whose glob pattern its name matches.

    `valid_fraction` of the training rows go to `valid` where no file does, by a hash of `key` (`"row"`: of the row's
    number in the order of the files).
    """

    by: Literal["files"] = "files"
    train: str
    valid: str | None = None
    test: str | None = None
    valid_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    key: str = "row"
    salt: str = ""


class TimeSplit(_Declaration):
    """By time: rows from `valid_from` on are validation, rows from `test_from` on are test."""

    by: Literal["time"] = "time"
    column: str
    valid_from: int | float | str
    test_from: int | float | str

    @field_validator("valid_from", "test_from", mode="before")
    @classmethod
    def _dates_as_text(cls, moment: Any) -> Any:
        # YAML reads an unquoted date as a date, not as text.
        return moment.isoformat() if isinstance(moment, datetime.date) else moment

    @model_validator(mode="after")
    def _in_order(self) -> TimeSplit:
        kinds = {isinstance(moment, str) for moment in (self.valid_from, self.test_from)}
        if len(kinds) == 2 or self.test_from < self.valid_from:  # type: ignore[operator]
            raise ValueError(f"test_from={self.test_from!r} must be a time of the kind of, and not before, {self.valid_from!r}")
        return self


class HashSplit(_Declaration):
    """By a hash of a key column, so that all rows of a key fall into one split (`"row"`: of the row's number)."""

    by: Literal["hash"] = "hash"
    key: str
    valid: float = Field(default=0.1, ge=0.0, lt=1.0)
    test: float = Field(default=0.1, ge=0.0, lt=1.0)
    salt: str = ""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> HashSplit:
        if self.valid + self.test >= 1.0:
            raise ValueError(f"valid={self.valid} and test={self.test} leave no training rows")
        return self


Split = Annotated[FileSplit | TimeSplit | HashSplit, Field(discriminator="by")]


class FittedNumeric(_Declaration):
    """What the training split says of a numeric feature, after its transform: mean, deviation, bucket edges."""

    mean: float
    std: float
    edges: tuple[float, ...] = ()


class Fitted(_Declaration):
    """What conversion has learned from the training split: rows of each table, and numeric statistics."""

    tables: dict[str, int]
    numeric: dict[str, FittedNumeric] = {}


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


class Schema(_Declaration):
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
        _check_tables(self.categoricals)
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
        """Features behind the columns of the packed `categorical` tensor: single-valued ones, then bucketed numerics."""
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


def _check_tables(categoricals: tuple[Categorical, ...]) -> None:
    shared = ("dtype", "hash_buckets", "min_count", "max_size", "embedding_dim")
    first: dict[str, Categorical] = {}
    for feature in categoricals:
        other = first.setdefault(feature.table_name, feature)
        for field in shared:
            if getattr(feature, field) != getattr(other, field):
                raise ValueError(
                    f"features {other.name!r} and {feature.name!r} share the table {feature.table_name!r} but differ in "
                    f"`{field}`: {getattr(other, field)!r} and {getattr(feature, field)!r}"
                )
