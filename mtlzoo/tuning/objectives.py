"""What a search is after: one measure of a task, several weighted, one under conditions, or a Pareto front."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import keras_tuner

from mtlzoo.metrics import DIRECTIONS, direction
from mtlzoo.tuning.names import known_name
from pipelines.schema import Schema

Evaluation = Mapping[str, Mapping[str, Any]]
# What an evaluation of a task holds (`mtlzoo.training.evaluate`). Losses depend on their weights: log_loss does not.
METRICS = tuple(name for name in DIRECTIONS if name != "loss")
# Cost of missing a condition by 1: missing it by 0.01 costs as much as 0.1 of AUC.
PENALTY = 10.0


def objective(task: str, metric: str, schema: Schema | None = None) -> keras_tuner.Objective:
    """The objective of any of KerasTuner's tuners: a metric of a task on the validation data, with its direction.

    Args:
        task: Name of a task, `"ctcvr"` for example.
        metric: `"auc"`, `"log_loss"`, `"normalized_entropy"`, `"ece"` or, of a task that is trained, `"loss"`;
            `hypermodel` logs the first two unless it is told which, and losses. (GAUC needs groups, which `fit` does
            not see: `Search` and `mtlzoo tune` have it.)
        schema: Its tasks are the known ones; `None`: any name is taken.

    Returns:
        `keras_tuner.Objective("val_<task>_<metric>", direction)`.

    Raises:
        ValueError: An unknown task or metric; the message lists the known ones.

    Example:
        >>> objective("ctcvr", "auc").direction
        'max'

    Source: our design; the directions are those of `mtlzoo.metrics.DIRECTIONS`.
    """
    if schema is not None:
        known_name(task, [target.name for target in schema.targets], "task")
    known_name(metric, [name for name in DIRECTIONS if name != "gauc"], "metric of model.fit")
    return keras_tuner.Objective(f"val_{task}_{metric}", direction(metric))


@dataclass(frozen=True)
class Measure:
    """One metric of one task, on the validation split.

    Attributes:
        task: Name of the task.
        metric: One of `METRICS`.
    """

    task: str
    metric: str

    def __str__(self) -> str:
        return f"{self.task}.{self.metric}"

    @property
    def direction(self) -> Literal["max", "min"]:
        """Which way it should go; from the registry of metrics, never a guess."""
        return direction(self.metric)

    def of(self, evaluation: Evaluation) -> float:
        """Its value.

        Raises:
            ValueError: It does not exist: a ranking without positives, or GAUC without a group key.
        """
        value = evaluation[self.task][self.metric]
        if value is None:
            raise ValueError(f"{self} does not exist on the validation split: no positives there, or no group key")
        return float(value)

    def cost(self, evaluation: Evaluation) -> float:
        """Its value where low is good, else minus its value."""
        return self.of(evaluation) if self.direction == "min" else -self.of(evaluation)


class TuningObjective(ABC):
    """Base of what a search may be after; `str` gives the text that `parse_objective` reads.

    Attributes:
        measures: What must be measured, in order.
        direction: Which way `value` should go.
    """

    measures: tuple[Measure, ...]
    direction: Literal["max", "min"] = "min"
    several: ClassVar[bool] = False  # whether there is a front of best trials rather than one

    @abstractmethod
    def value(self, evaluation: Evaluation) -> float:
        """The number that guides the search."""

    def note(self, evaluation: Evaluation) -> str:
        """What `value` alone does not say; empty where it says all."""
        return ""

    def cost(self, evaluation: Evaluation) -> tuple[float, ...]:
        """What is compared where one trial, or one epoch, must be chosen: the least is the best."""
        value = self.value(evaluation)
        return (value if self.direction == "min" else -value,)


class Single(TuningObjective):
    """One measure, `ctcvr.auc`.

    Args:
        measure: The measure.
    """

    def __init__(self, measure: Measure) -> None:
        self.measures = (measure,)
        self.direction = measure.direction

    def __str__(self) -> str:
        return str(self.measures[0])

    def value(self, evaluation: Evaluation) -> float:
        """The measure's own value."""
        return self.measures[0].of(evaluation)


class Weighted(TuningObjective):
    """A weighted sum, `0.3*click.auc + 0.7*ctcvr.auc`: maximised, with minus for measures that should be low.

        value = sum_j w_j m_j over measures to maximise - sum_j w_j m_j over measures to minimise

    Args:
        measures: The measures.
        weights: One for each, above 0.

    Raises:
        ValueError: Weights that are not above 0; a direction is a measure's own, not a sign.
    """

    direction: Literal["max", "min"] = "max"

    def __init__(self, measures: Sequence[Measure], weights: Sequence[float]) -> None:
        if not all(weight > 0 for weight in weights):
            raise ValueError(f"the weights of an objective must be above 0, are {', '.join(f'{w:g}' for w in weights)}")
        self.measures = tuple(measures)
        self.weights = tuple(weights)

    def __str__(self) -> str:
        return " + ".join(f"{w:.12g}*{m}" for w, m in zip(self.weights, self.measures, strict=True))

    def value(self, evaluation: Evaluation) -> float:
        """The weighted sum."""
        return -sum(w * m.cost(evaluation) for w, m in zip(self.weights, self.measures, strict=True))

    def note(self, evaluation: Evaluation) -> str:
        """The measures that the sum is made of."""
        return ", ".join(f"{measure} {measure.of(evaluation):.4f}" for measure in self.measures)


class Constrained(TuningObjective):
    """One measure under conditions, `ctcvr.auc if click.auc >= 0.62`.

    The search is guided by `value = m -+ 10 sum_k v_k`, worse by ten times what the conditions are missed by. Trials
    are compared by three rules: one that keeps all conditions beats one that does not; of two that keep them, the
    better measure; of two that do not, the smaller sum of what is missed.

    Args:
        measure: What to get the best of.
        conditions: A measure and its bound: at least that for measures to maximise, at most for the others.

    Source: the rules are those of Deb, "An efficient constraint handling method for genetic algorithms" (2000),
    section 3; the penalty that makes a number of them is our design.
    """

    def __init__(self, measure: Measure, conditions: Sequence[tuple[Measure, float]]) -> None:
        self.measures = (measure, *(bounded for bounded, _ in conditions))
        self.conditions = tuple(conditions)
        self.direction = measure.direction

    def __str__(self) -> str:
        conditions = (f"{m} {'>=' if m.direction == 'max' else '<='} {bound:.12g}" for m, bound in self.conditions)
        return f"{self.measures[0]} if {' and '.join(conditions)}"

    def missed(self, evaluation: Evaluation) -> dict[str, float]:
        """By measure, what its condition is missed by; those that are kept are left out."""
        short = {
            str(measure): measure.cost(evaluation) - (bound if measure.direction == "min" else -bound)
            for measure, bound in self.conditions
        }
        return {name: by for name, by in short.items() if by > 0}

    def value(self, evaluation: Evaluation) -> float:
        """The measure, worse by the penalty."""
        penalty = PENALTY * sum(self.missed(evaluation).values())
        return self.measures[0].of(evaluation) + (penalty if self.direction == "min" else -penalty)

    def note(self, evaluation: Evaluation) -> str:
        """The measure itself, and which conditions are missed by how much."""
        own = f"{self.measures[0]} {self.measures[0].of(evaluation):.4f}"
        missed = ", ".join(f"{name} misses its bound by {by:.4f}" for name, by in self.missed(evaluation).items())
        return f"{own}, {missed}" if missed else own

    def cost(self, evaluation: Evaluation) -> tuple[float, ...]:
        """Deb's three rules as a pair that is compared from the left."""
        return sum(self.missed(evaluation).values()), self.measures[0].cost(evaluation)


class Pareto(TuningObjective):
    """Several measures of which none is given up for another, `click.auc, ctcvr.auc`: what is wanted is the front.

    `value` is the plain sum of the measures' costs, and only says which epoch of a trial counts. The search itself is
    guided trial by trial by another mixture of the measures (`mtlzoo.tuning.pareto`).

    Args:
        measures: At least two.

    Raises:
        ValueError: Fewer than two, or one twice.
    """

    several: ClassVar[bool] = True

    def __init__(self, measures: Sequence[Measure]) -> None:
        if len(set(measures)) < 2 or len(set(measures)) < len(measures):
            raise ValueError("a Pareto front needs two or more different measures")
        self.measures = tuple(measures)

    def __str__(self) -> str:
        return ", ".join(map(str, self.measures))

    def value(self, evaluation: Evaluation) -> float:
        """Sum of the costs."""
        return sum(measure.cost(evaluation) for measure in self.measures)

    def note(self, evaluation: Evaluation) -> str:
        """All measures."""
        return ", ".join(f"{measure} {measure.of(evaluation):.4f}" for measure in self.measures)


def parse_objective(text: str, schema: Schema) -> TuningObjective:
    """Reads an objective.

    Args:
        text: `"ctcvr.auc"`; `"0.3*click.auc + 0.7*ctcvr.auc"`; `"ctcvr.auc if click.auc >= 0.62"`, several conditions
            joined by `and`; or `"click.auc, ctcvr.auc"` for a Pareto front.
        schema: Its tasks are the known ones.

    Returns:
        The objective; its `str` is the text, written in one way.

    Raises:
        ValueError: It cannot be read, an unknown task or metric, or a bound on the wrong side.

    Example:
        >>> str(parse_objective("ctcvr.auc if click.auc>=0.62", dataset.schema))
        'ctcvr.auc if click.auc >= 0.62'

    Source: our design.
    """
    if " if " in text:
        measure, _, conditions = text.partition(" if ")
        return Constrained(_measure(measure, schema), [_condition(part, schema) for part in conditions.split(" and ")])
    if "," in text:
        return Pareto([_measure(part, schema) for part in text.split(",")])
    if "*" in text or "+" in text:
        terms = [part.partition("*") for part in text.split("+")]
        weights = [_number(weight, text) if star else 1.0 for weight, star, _ in terms]
        return Weighted([_measure(name if star else weight, schema) for weight, star, name in terms], weights)
    return Single(_measure(text, schema))


def _measure(text: str, schema: Schema) -> Measure:
    task, dot, metric = text.strip().rpartition(".")
    if not dot:
        raise ValueError(f"an objective is named TASK.METRIC, such as ctcvr.auc, got {text.strip()!r}")
    known_name(task, [target.name for target in schema.targets], "task")
    return Measure(task, known_name(metric, METRICS, "metric"))


def _condition(text: str, schema: Schema) -> tuple[Measure, float]:
    sign = next((sign for sign in (">=", "<=") if sign in text), None)
    if sign is None:
        raise ValueError(f"a condition reads TASK.METRIC >= NUMBER or <= NUMBER, got {text.strip()!r}")
    name, _, bound = text.partition(sign)
    measure = _measure(name, schema)
    wanted = ">=" if measure.direction == "max" else "<="
    if sign != wanted:
        raise ValueError(f"{measure} is to be {'high' if wanted == '>=' else 'low'}: bound it by {wanted}, not {sign}")
    return measure, _number(bound, text)


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"in the objective {whole.strip()!r}, {text.strip()!r} is no number") from None
