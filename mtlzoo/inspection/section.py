"""The parts that a report is made of."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from matplotlib.figure import Figure

from mtlzoo.inspection.figures import image_of

_MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        headings: One per column; the first column names the rows.
        rows: Cells as they are shown.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure inside the page.

    Attributes:
        caption: What it shows and how to read it.
        source: The image, as a `data:` address.
    """

    caption: str
    source: str


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: Its heading.
        text: What it says before tables and figures.
        tables: Its tables.
        pictures: Its figures.
    """

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def picture_of(figure: Figure, caption: str, kind: str = "svg") -> Picture:
    """A figure as a picture.

    Args:
        figure: The figure.
        caption: What it shows and how to read it.
        kind: `"svg"`, or `"png"` for figures of many cells.
    """
    content = base64.b64encode(image_of(figure, kind)).decode("ascii")
    return Picture(caption, f"data:{_MEDIA_TYPES[kind]};base64,{content}")


def percent(share: float | None) -> str:
    """A share with one decimal, or a dash for what does not exist."""
    return "-" if share is None else f"{share:.1%}"


def decimal(value: float | None, places: int) -> str:
    """A number with so many decimals, or a dash for what does not exist."""
    return "-" if value is None else f"{value:.{places}f}"
