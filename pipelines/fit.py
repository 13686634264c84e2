"""The first pass over raw logs: counts the rows of each split, and fits what only the training split can tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.errors import DataError
from pipelines.like import Like
from pipelines.raw import RawBatch, read_raw
from pipelines.schema import Schema
from pipelines.split import SPLITS, TRAIN, assign_split
from pipelines.validate import valid_rows
from pipelines.vocabulary import Vocabulary, VocabularyFitter

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class FirstPass:
    """What the first pass has found.

    Attributes:
        schema: The fitted schema.
        vocabularies: By table name.
        rows: Impressions by split.
        dropped_rows: Rows that the schema leaves out.
    """

    schema: Schema
    vocabularies: dict[str, Vocabulary]
    rows: dict[str, int]
    dropped_rows: int


def fit(paths: list[Path], schema: Schema, report: Progress) -> FirstPass:
    """Fits vocabularies, means, deviations and bucket edges over the training rows.

    Raises:
        DataError: A bad row, or there are no training rows.
    """
    fitter = VocabularyFitter(schema)
    rows, dropped = _count(paths, schema, fitter.add, lambda done: report("fit", done, None))
    if rows[SPLITS[TRAIN]] == 0:
        raise DataError(f"the split leaves no training rows ({rows})")
    vocabularies, fitted = fitter.finish()
    return FirstPass(schema.model_copy(update={"fitted": fitted}), vocabularies, rows, dropped)


def take_over(paths: list[Path], like: Like, report: Progress) -> FirstPass:
    """Counts the rows only: vocabularies and statistics are those of another dataset.

    Raises:
        DataError: A bad row, or all rows are dropped.
    """
    rows, dropped = _count(paths, like.schema, lambda batch: None, lambda done: report("count", done, None))
    if not any(rows.values()):
        raise DataError(f"no row is left: all {dropped} have a label but not its parent; correct the log")
    return FirstPass(like.schema, like.vocabularies, rows, dropped)


def usable(raw: RawBatch, schema: Schema) -> tuple[pa.RecordBatch, np.ndarray, int]:
    """The rows of a raw batch that the schema keeps, their splits, and how many were dropped."""
    splits = assign_split(raw, schema)
    keep = valid_rows(raw, schema)
    if keep is None:
        return raw.batch, splits, 0
    return raw.batch.filter(pa.array(keep)), splits[keep], int((~keep).sum())


def _count(
    paths: list[Path], schema: Schema, add: Callable[[pa.RecordBatch], None], report: Callable[[int], None]
) -> tuple[dict[str, int], int]:
    """Rows by split and dropped rows; `add` gets the training rows."""
    counts = np.zeros(len(SPLITS), np.int64)
    done = dropped = 0
    for raw in read_raw(paths, schema):
        batch, splits, lost = usable(raw, schema)
        dropped += lost
        counts += np.bincount(splits, minlength=len(SPLITS))
        add(batch.filter(pa.array(splits == TRAIN)))
        done += raw.batch.num_rows
        report(done)
    return dict(zip(SPLITS, counts.tolist(), strict=True)), dropped
