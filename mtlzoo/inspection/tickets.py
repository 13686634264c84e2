"""How the ticket of each task was found, as a run keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from mtlzoo.training.run import LOTTERY, read_json
from pipelines import DataError


class TicketRound(BaseModel):
    """One training of one task alone.

    Attributes:
        density: Share of the trunk's connections that it could use.
        value: The monitored value on the validation split; `None` where it does not exist.
    """

    density: Annotated[float, Field(gt=0, le=1)]
    value: float | None


class TicketSearch(BaseModel):
    """What was tried for one task.

    Attributes:
        rounds: From dense to sparse.
        chosen: Index of the round whose mask the task has.
    """

    rounds: Annotated[tuple[TicketRound, ...], Field(min_length=1)]
    chosen: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _chosen_is_a_round(self) -> TicketSearch:
        if self.chosen >= len(self.rounds):
            raise ValueError(f"chosen must be below the number of rounds, {len(self.rounds)}, is {self.chosen}")
        return self


class Tickets(BaseModel):
    """What was tried for all tasks.

    Attributes:
        monitor: `"loss"` (lower is better) or `"auc"` (higher is better), of the task alone on the validation split.
        tasks: By task.
    """

    monitor: Literal["loss", "auc"]
    tasks: Annotated[dict[str, TicketSearch], Field(min_length=1)]


def read_tickets(run_folder: Path) -> Tickets | None:
    """Reads how a run found its tickets.

    Args:
        run_folder: The run directory.

    Returns:
        What was tried; `None` where the run did not look for tickets.

    Raises:
        DataError: The file is damaged.

    Example:
        >>> read_tickets(Path("runs/mmoe")) is None
        True

    Source: our design.
    """
    path = run_folder / LOTTERY
    if not path.exists():
        return None
    try:
        return Tickets.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "its top"
        raise DataError(f"{path}: damaged at {where}: {fault['msg']}; train the run again") from None
