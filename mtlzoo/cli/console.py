"""What the commands print with: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

out = Console()
err = Console(stderr=True)

RowProgress = Callable[[int, int | None], None]


def print_error(message: str) -> None:
    """Prints an error in one block."""
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Prints plain JSON for another program."""
    print(json.dumps(data, indent=1))


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars on standard error, gone when the work is done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        yield bars


@contextmanager
def row_progress(description: str) -> Iterator[RowProgress]:
    """A bar over rows; its callback takes rows done and rows in all (`None` while unknown)."""
    with progress_bars() as bars:
        bar = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


@contextmanager
def phase_progress(descriptions: dict[str, str]) -> Iterator[Callable[[str, int, int | None], None]]:
    """One bar per phase; the callback takes the phase, rows done and rows in all."""
    with progress_bars() as bars:
        started: dict[str, Any] = {}

        def update(phase: str, done: int, total: int | None) -> None:
            if phase not in started:
                started[phase] = bars.add_task(descriptions[phase], total=total)
            bars.update(started[phase], completed=done, total=total)

        yield update
