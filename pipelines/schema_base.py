"""What all parts of a schema share: their strictness, and what may be a name."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

RESERVED_NAMES = frozenset({"categorical", "numeric"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*\Z")


def checked_name(name: str) -> str:
    """The name of a feature or label, if it can be one.

    Raises:
        ValueError: It has other characters than letters, digits and `_`, or is reserved.
    """
    if not _NAME.match(name):
        raise ValueError(
            f"{name!r} is no usable name: use letters, digits and '_' (and set `column:` where the raw column differs)"
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is reserved for the packed batch; give the feature another name and set `column:`")
    return name


class Declaration(BaseModel):
    """Part of a schema: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
