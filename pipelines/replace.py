"""Puts a finished directory in the place of an older one, so that at every moment one of the two can be found."""

from __future__ import annotations

import shutil
from pathlib import Path


def replace_directory(new: Path, place: Path) -> None:
    """Moves `new` to `place`: the older one is moved aside to `<place>.old` and deleted last."""
    old = set_aside(place)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def put_back(place: Path) -> None:
    """Mends what a process killed between the two renames of `replace_directory` has left: the older one returns."""
    old = set_aside(place)
    if old.exists() and not place.exists():
        old.rename(place)


def set_aside(place: Path) -> Path:
    """Where the older directory stands while it is replaced."""
    return place.with_name(place.name + ".old")
