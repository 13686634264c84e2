"""Public datasets: where each comes from, its schema, its split."""

from __future__ import annotations

from pathlib import Path

from pipelines.convert import Progress
from pipelines.datasets.census_income import CENSUS_INCOME
from pipelines.datasets.hillstrom import HILLSTROM
from pipelines.datasets.public import PublicDataset
from pipelines.errors import DataError
from pipelines.records import Layout

__all__ = ["DATASETS", "PublicDataset", "prepare"]

DATASETS: dict[str, PublicDataset] = {dataset.name: dataset for dataset in (CENSUS_INCOME, HILLSTROM)}


def prepare(
    name: str,
    raw: str | Path,
    out: str | Path,
    progress: Progress | None = None,
    layout: Layout = "blocks",
    shards: int = 8,
) -> Path:
    """Converts the raw files of a public dataset into a dataset directory.

    Args:
        name: A key of `DATASETS`.
        raw: Directory with the publisher's files; nothing is downloaded.
        out: The dataset directory; replaced when the new one is complete.
        progress: As in `pipelines.convert`.
        layout: `"blocks"` or `"rows"`.
        shards: Wanted number of shards per split.

    Returns:
        The dataset directory.

    Raises:
        DataError: Unknown name, raw files missing (the message says where to get them) or damaged.

    Example:
        >>> prepare("hillstrom", raw="downloads", out="data/hillstrom")
        PosixPath('data/hillstrom')
    """
    if name not in DATASETS:
        raise DataError(f"there is no dataset {name!r}; known are {', '.join(DATASETS)}")
    return DATASETS[name].prepare(Path(raw), Path(out), progress=progress, layout=layout, shards=shards)
