"""How a schema says which rows are for training, validation and test."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.schema_base import Declaration


class FileSplit(Declaration):
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


class TimeSplit(Declaration):
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
            raise ValueError(
                f"test_from={self.test_from!r} must be a time of the kind of, and not before, {self.valid_from!r}"
            )
        return self


class HashSplit(Declaration):
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
