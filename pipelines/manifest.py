"""`manifest.json`: what a dataset directory holds. It is written last; a directory without one is not a dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import DataError
from pipelines.records import Compression, Layout

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
SCHEMA = "schema.yaml"
VOCABULARIES = "vocabularies"


class Shard(BaseModel):
    """One TFRecord file.

    Attributes:
        file: Its name.
        rows: Impressions in it.
        bytes: Its size.
        record_bytes: Size of its records as they are read, larger than `bytes` where the file is compressed; `None` in
            datasets of earlier versions, which are never compressed.
        sha256: Of its content.
        positives: By label the rows that have it at 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    rows: int
    bytes: int
    record_bytes: int | None = None
    sha256: str
    positives: dict[str, int]


class Manifest(BaseModel):
    """The splits of a dataset with their shards, label counts and checksums."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    layout: Layout
    compression: Compression = "none"
    schema_digest: str
    sources: tuple[str, ...]
    dropped_rows: int
    inexact_vocabularies: tuple[str, ...] = ()
    splits: dict[str, tuple[Shard, ...]]

    def rows(self, split: str) -> int:
        """Impressions in a split."""
        return sum(shard.rows for shard in self.splits[split])

    def positives(self, split: str) -> dict[str, int]:
        """Rows with each label at 1 in a split."""
        totals: dict[str, int] = {}
        for shard in self.splits[split]:
            for label, count in shard.positives.items():
                totals[label] = totals.get(label, 0) + count
        return totals


def load_manifest(folder: Path) -> Manifest:
    """Reads a dataset's manifest and compares it with the files beside it, by name and size.

    Raises:
        DataError: There is no manifest, it is damaged or of another version, or a shard is missing, truncated, or not
            known to it.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such dataset directory")
    if not path.is_file():
        raise DataError(
            f"{folder}: holds no {MANIFEST}, so it is no dataset or its conversion did not finish; run it again"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else {"msg": str(error), "loc": ()}
        field = ".".join(str(part) for part in fault["loc"])
        raise DataError(
            f"{path}: damaged or of another version: {field} {fault['msg']}; convert the log again"
        ) from None
    _check_files(folder, manifest)
    return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
    known = {shard.file: shard for shards in manifest.splits.values() for shard in shards}
    for file, shard in known.items():
        path = folder / file
        if not path.is_file():
            raise DataError(
                f"{path}: the manifest lists this shard, but it is missing; restore it or convert the log again"
            )
        size = path.stat().st_size
        if size != shard.bytes:
            raise DataError(
                f"{path}: has {size} bytes, the manifest says {shard.bytes}: truncated or overwritten; restore it or "
                f"convert the log again"
            )
    for path in sorted(folder.glob("*.tfrecord")):
        if path.name not in known:
            raise DataError(f"{path}: the manifest does not know this shard; remove it or convert the log again")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
