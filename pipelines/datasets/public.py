"""What the project knows of a public dataset; nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError

_COMPRESSIONS = ("", ".gz", ".zst")


@dataclass(frozen=True)
class PublicDataset:
    """A public dataset: what it is, where a person gets it, how it becomes a dataset directory.

    Attributes:
        name: Its name on the command line.
        description: What it holds and who published it.
        licence: Terms of the publisher.
        url: Page to fetch the raw files from, by hand.
        files: Raw files that `prepare` looks for in its directory (each also compressed as .gz or .zst).
        prepare: `(raw_dir, out, progress, layout, shards) -> out`; see `pipelines.datasets.prepare`.
    """

    name: str
    description: str
    licence: str
    url: str
    files: tuple[str, ...]
    prepare: Callable[..., Path]


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder, plain or compressed, or `None`."""
    candidates = (folder / (name + ending) for ending in _COMPRESSIONS)
    return next((path for path in candidates if path.is_file()), None)


def missing_files(folder: Path, wanted: str, url: str) -> DataError:
    """The error for a raw directory that lacks its files."""
    lies_there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) if folder.is_dir() else "no directory"
    return DataError(f"{folder}: lacks {wanted}; fetch it from {url} (found there: {lies_there or 'nothing'})")
