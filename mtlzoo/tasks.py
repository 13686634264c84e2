"""Tasks: what a model predicts, on which impressions each is measured, and which of them it is trained on.

A click/conversion funnel has three tasks: click (all impressions), conversion (clicked impressions) and ctcvr, click
and conversion both (all impressions). A model predicts all three and is evaluated on all three; the label space says
which two it is trained on:

    label space     trained on                              the conversion head's logit is of
    cvr_clicked     click; conversion on clicked rows       P(conversion | click)
    esmm_product    click; ctcvr as pCTR x pCVR             P(conversion | click)         (ESMM, SIGIR 2018, eq. 2-3)
    ctcvr           click; ctcvr as a head of its own       P(click and conversion)

`cvr_clicked` learns conversion from clicked impressions only and is then asked about all of them (sample selection
bias); the other two are trained on the whole exposure space. Its losses are means over each task's population, so a
conversion among few clicked impressions weighs far more than in `esmm_product`, and overfits sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.schema import Schema

LabelSpace = Literal["cvr_clicked", "esmm_product", "ctcvr"]
LABEL_SPACES: tuple[LabelSpace, ...] = ("cvr_clicked", "esmm_product", "ctcvr")


@dataclass(frozen=True)
class Task:
    """One prediction of a model.

    Attributes:
        name: Key in labels, sample weights and predictions.
        label: The label that it ends in.
        population: Labels that must have happened for an impression to count; empty: all impressions.
        joint: Whether it is the probability that the label and all its ancestors happen.
        trained: Whether the label space trains it directly; the others follow from those that it trains.
    """

    name: str
    label: str
    population: tuple[str, ...]
    joint: bool
    trained: bool

    def __str__(self) -> str:
        where = f"impressions with {' and '.join(self.population)}" if self.population else "all impressions"
        return f"{self.name} on {where}"


def tasks_of(schema: Schema, label_space: LabelSpace) -> tuple[Task, ...]:
    """The tasks of a schema, in the order of its targets.

    Args:
        schema: The schema.
        label_space: `"cvr_clicked"`, `"esmm_product"` or `"ctcvr"`; without a funnel they are the same.

    Raises:
        ValueError: Unknown label space.
    """
    if label_space not in LABEL_SPACES:
        raise ValueError(f"label_space must be one of {', '.join(LABEL_SPACES)}, is {label_space!r}")
    joint_trained = label_space != "cvr_clicked"
    return tuple(
        Task(
            target.name,
            target.label,
            target.given,
            target.is_joint,
            trained=joint_trained if target.is_joint else not (target.given and joint_trained),
        )
        for target in schema.targets
    )
