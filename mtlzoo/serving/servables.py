"""Where servables, their versions and warmup records lie on disk, as TF Serving reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tensorflow_serving.config import file_system_storage_path_source_pb2

from pipelines import DataError

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MOST_WARMUP_RECORDS = 1000

_MOST_VERSION = 2**63 - 1
_Policy = file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy


def find_servables(folder: str | Path) -> dict[str, Path]:
    """The servables at or under a directory, by name, in the order of their names.

    Args:
        folder: A servable, whose name is the directory's own; or a directory whose sub-directories are servables.

    Raises:
        DataError: It is no directory, or holds no servable.

    Source:
        Our design.

    Example:
        >>> find_servables("saved_models")
        {'mmoe': PosixPath('saved_models/mmoe')}
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such directory")
    if versions_of(folder):
        return {folder.resolve().name: folder}
    found = {child.name: child for child in sorted(folder.iterdir()) if child.is_dir() and versions_of(child)}
    if not found:
        raise DataError(
            f"{folder}: holds no servable: neither it nor a sub-directory has a version (a directory named by a "
            f"number); write one with `mtlzoo export RUN --out {folder}/NAME`"
        )
    return found


def versions_of(servable: str | Path) -> dict[int, Path]:
    """The version directories of a servable by number, rising, as TF Serving reads their names.

    `003` is version 3; names that are no numbers are ignored. Of `3` and `003` one is taken, as TF Serving does.

    Args:
        servable: Directory of a servable.

    Source:
        TF Serving, `sources/storage_path/file_system_storage_path_source.cc`.

    Example:
        >>> versions_of("saved_models/mmoe")
        {1: PosixPath('saved_models/mmoe/1')}
    """
    numbered = {
        int(child.name): child
        for child in sorted(Path(servable).iterdir())
        if re.fullmatch(r"\d{1,20}", child.name, re.ASCII) and int(child.name) <= _MOST_VERSION and child.is_dir()
    }
    return dict(sorted(numbered.items()))


def version_policy(text: str) -> Any:
    """Which versions of a model are served.

    Args:
        text: `"latest"`, `"latest:N"` (the N highest), `"all"`, or numbers parted by commas (`"1,3"`).

    Returns:
        The message `FileSystemStoragePathSourceConfig.ServableVersionPolicy`.

    Raises:
        ValueError: None of these.

    Source:
        Our notation of TF Serving's policies.

    Example:
        >>> list(version_policy("1,3").specific.versions)
        [1, 3]
    """
    if text == "all":
        return _Policy(all=_Policy.All())
    if found := re.fullmatch(r"latest(?::([1-9]\d{0,8}))?", text, re.ASCII):
        return _Policy(latest=_Policy.Latest(num_versions=int(found.group(1) or 1)))
    if re.fullmatch(r"\d{1,18}(,\d{1,18})*", text, re.ASCII):
        versions = sorted({int(number) for number in text.split(",")})
        return _Policy(specific=_Policy.Specific(versions=versions))
    raise ValueError(f"a version policy is latest, latest:N, all, or numbers parted by commas; is {text!r}")
