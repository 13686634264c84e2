"""What is kept of each trial: one JSON file, written by rename, read by every worker and after every interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from mtlzoo.training.run import read_json, write_json
from pipelines import DataError

Status = Literal["running", "interrupted", "finished", "pruned", "failed"]


class TrialRecord(BaseModel):
    """One trial.

    Attributes:
        number: Of the trial, from 1.
        values: Hyper-parameters by name.
        status: `"running"` also where the process was killed; `"finished"`, `"pruned"` and `"failed"` are final.
        begun: How often it was begun without an end or an orderly interruption.
        epochs: Epochs that it was to train.
        curve: The objective's value after each epoch.
        best_epoch: The epoch that counts, from 1.
        value: The objective's value then.
        note: What the value does not say, such as a condition that was missed.
        evaluation: All metrics of all tasks on the validation split, of the epoch that counts.
        reason: Why it failed or was pruned.
        seconds: How long it took.
        worker: Which of several processes ran it.
    """

    number: int
    values: dict[str, Any]
    status: Status = "running"
    begun: int = 0
    epochs: int = 0
    curve: list[float] = []
    best_epoch: int | None = None
    value: float | None = None
    note: str = ""
    evaluation: dict[str, dict[str, Any]] = {}
    reason: str = ""
    seconds: float = 0.0
    worker: str = ""

    @property
    def has_result(self) -> bool:
        """Whether it has a value to compare: it finished, or was pruned."""
        return self.status in ("finished", "pruned")

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.has_result or self.status == "failed"


class Records:
    """The trials of a search directory.

    Args:
        folder: Where their files are; made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, record: TrialRecord) -> None:
        """Writes a trial."""
        write_json(self._path(record.number), record.model_dump())

    def find(self, number: int) -> TrialRecord | None:
        """A trial; `None` where it was never begun.

        Raises:
            DataError: Its file is damaged.
        """
        path = self._path(number)
        if not path.exists():
            return None
        try:
            return TrialRecord.model_validate(read_json(path))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "its top"
            raise DataError(f"{path}: damaged at {where}: {fault['msg']}; delete it and run the search again") from None

    def all(self) -> list[TrialRecord]:
        """All trials, by number."""
        numbers = sorted(int(path.stem) for path in self._folder.glob("*.json"))
        found = (self.find(number) for number in numbers)
        return [record for record in found if record is not None]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.json"
