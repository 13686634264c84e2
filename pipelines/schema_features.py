"""The features of a schema: categorical, multi-valued categorical, numeric.

Ids, the same for every categorical feature:

    0        out of vocabulary: a value that the training split did not have (or had too rarely)
    1        missing: null, or one of the feature's `missing_values`
    2 ...    the vocabulary in order of falling frequency, or the hash buckets, or the quantile buckets
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.schema_base import Declaration, checked_name

OUT_OF_VOCABULARY = 0
MISSING = 1
FIRST_ID = 2


class _Feature(Declaration):
    name: str
    column: str | None = None
    embedding_dim: int | None = Field(default=None, ge=1)

    _name = field_validator("name")(checked_name)

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
    hash_buckets: int | None = Field(default=None, ge=1, le=2**31 - 1 - FIRST_ID)
    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=1)
    missing_values: tuple[str | int, ...] = ("",)

    @field_validator("table")
    @classmethod
    def _table_name(cls, table: str | None) -> str | None:
        return None if table is None else checked_name(table)

    @property
    def table_name(self) -> str:
        """The table that the ids of this feature index."""
        return self.table or self.name


class MultiCategorical(Categorical):
    """A list of ids per impression, padded to `max_length`.

    Attributes:
        max_length: Longer lists are cut to this length.
        keep: Which end of a longer list stays: `"first"` or `"last"` (the most recent of a history).
        ordered: Whether the values stand in the order of time, the oldest first; only with `keep="last"`. Position 0 of
            the padded list is the oldest value that was kept, the padding stands behind the most recent one.
        combiner: How the embeddings of a list become one: `"mean"`, `"sum"` or `"sqrtn"`.
        weights: Raw column with one float per value; `None` weighs every value 1.
        separator: What parts the values where the raw column is a string (CSV).
    """

    type: Literal["multi_categorical"] = "multi_categorical"  # type: ignore[assignment]
    max_length: int = Field(ge=1)
    keep: Literal["first", "last"] = "first"
    ordered: bool = False
    combiner: Literal["mean", "sum", "sqrtn"] = "mean"
    weights: str | None = None
    separator: str = Field(default="|", min_length=1)

    @model_validator(mode="after")
    def _most_recent_stay(self) -> MultiCategorical:
        if self.ordered and self.keep == "first":
            raise ValueError(
                "`ordered: true` needs the most recent values, `keep: first` drops them: write `keep: last`"
            )
        return self

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
    missing: Literal["error", "mean"] | Annotated[float, Field(allow_inf_nan=False)] = "error"
    indicator: bool = False

    @model_validator(mode="after")
    def _missing_value_in_domain(self) -> Numeric:
        if self.transform == "log1p" and isinstance(self.missing, float) and self.missing <= -1.0:
            raise ValueError(f"missing={self.missing} must be above -1 for log1p; use `transform: symlog`")
        return self

    @property
    def table_name(self) -> str:
        """The table that the bucket ids of this feature index."""
        return self.name

    @property
    def has_value(self) -> bool:
        """Whether the float itself is an input of the model."""
        return self.buckets is None or self.keep_value


Feature = Annotated[Categorical | MultiCategorical | Numeric, Field(discriminator="type")]
