"""`mtlzoo score`: a run's probabilities for every impression of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines import Dataset

ALL = "all"


def score(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    out_file: Annotated[
        Path, typer.Option("--out", help="File to write: .parquet, .csv, .json or .jsonl; an older one is replaced.")
    ],
    data: Annotated[Path | None, typer.Option(help="Dataset directory; default: the run's own.")] = None,
    split: Annotated[str, typer.Option(help="test, valid, train or all.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Impressions that are computed at a time.")] = 16_384,
) -> None:
    """Scores a dataset: a row per impression in the order of the log, with its labels and all probabilities."""
    from mtlzoo.cli.console import err, row_progress
    from mtlzoo.scoring import score as score_dataset
    from mtlzoo.training import open_run

    run = open_run(run_folder)
    dataset = run.dataset(data)
    splits = _splits(dataset) if split == ALL else (split,)
    with row_progress(f"scoring {split}") as progress:
        rows = score_dataset(run.model(), dataset, out_file, splits, batch_size, progress=progress)
    err.print(f"scores: {out_file} ({rows:,} rows)", highlight=False, markup=False, soft_wrap=True)


def _splits(dataset: Dataset) -> tuple[str, ...]:
    """All splits with rows; all there are where none has any."""
    splits = tuple(dataset.manifest.splits)
    return tuple(split for split in splits if dataset.rows(split)) or splits
