"""What training shows: a bar over the steps of an epoch, and a line of results behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from rich.progress import Progress

from mtlzoo.cli.console import err, progress_bars
from mtlzoo.training import Run, RunConfig, train


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
        self._announced = ""

    def announce(self, text: str) -> None:
        """Names the trainings that follow, instead of the number of their epoch; an empty text ends that."""
        self._announced = text

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the epoch's bar."""
        self._stack = progress_bars()
        self._bars = self._stack.__enter__()
        title = self._announced or f"epoch {epoch + 1} of at most {self._epochs}"
        self._bar = self._bars.add_task(title, total=self.params.get("steps"))

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Moves the bar."""
        if self._bars is not None:
            self._bars.update(self._bar, completed=batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Ends the bar and prints loss, validation AUCs and speed."""
        self.close()
        logs = logs or {}
        aucs = [
            f"{key.removeprefix('val_').removesuffix('auc').removesuffix('_')} {value:.4f}".strip()
            for key, value in logs.items()
            if key.startswith("val_") and key.endswith("auc")
        ]
        speed = logs.get("impressions_per_second")
        err.print(
            f"{self._announced or f'epoch {epoch + 1}'}: loss {logs['loss']:.4f}, "
            f"validation {logs.get('val_loss', float('nan')):.4f}; validation AUC {', '.join(aucs)}"
            + (f"; {speed:,.0f} impressions/s" if speed is not None else ""),
            highlight=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Takes the bar off the screen, also when training stops in the middle of an epoch."""
        if self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = self._bars = None


def train_with_progress(config: RunConfig, out_folder: Path) -> Run:
    """Trains with a progress bar that leaves the screen whatever happens."""
    progress = TrainingProgress(config.epochs)
    try:
        return train(config, out_folder, callbacks=[progress], announce=progress.announce)
    finally:
        progress.close()
