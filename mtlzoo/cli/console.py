"""What the commands print with: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
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


class TrainingProgress(keras.callbacks.Callback):
    """A bar over the steps of an epoch, and a line of results behind it.

    Args:
        epochs: Most epochs that the run may take.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self._epochs = epochs
        self._bars: Progress | None = None
        self._bar: Any = None
        self._stack: Any = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the epoch's bar."""
        self._stack = progress_bars()
        self._bars = self._stack.__enter__()
        self._bar = self._bars.add_task(f"epoch {epoch + 1} of at most {self._epochs}", total=self.params.get("steps"))

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Moves the bar."""
        if self._bars is not None:
            self._bars.update(self._bar, completed=batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Ends the bar and prints loss, validation AUCs and speed."""
        self.close()
        logs = logs or {}
        aucs = [
            f"{key.removeprefix('val_').removesuffix('_auc')} {value:.4f}"
            for key, value in logs.items()
            if key.startswith("val_") and key.endswith("_auc")
        ]
        speed = logs.get("impressions_per_second", float("nan"))
        err.print(
            f"epoch {epoch + 1}: loss {logs['loss']:.4f}, validation loss {logs.get('val_loss', float('nan')):.4f}, "
            f"AUC {', '.join(aucs)} ({speed:,.0f} impressions/s)",
            highlight=False,
        )

    def close(self) -> None:
        """Takes the bar off the screen, also when training stops in the middle of an epoch."""
        if self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = self._bars = None
