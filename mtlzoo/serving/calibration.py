"""Calibrated probabilities: fitted on a held-out split, applied in the exported graph; and what a change costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf

from mtlzoo.metrics import TaskEvaluation
from mtlzoo.serving.calibration_curves import Isotonic, LogOddsHistogram, Temperature, fit_isotonic, fit_temperature
from mtlzoo.training.evaluate import EVALUATION_BATCH
from mtlzoo.training.same_data import check_same_data
from pipelines import DataError, Dataset

Kind = Literal["temperature", "isotonic"]
KINDS: tuple[Kind, ...] = ("temperature", "isotonic")

_MEASURES = ("auc", "log_loss", "calibration", "ece")

Predict = Callable[[Any], Mapping[str, Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FittedTask:
    """The map of one task, and what it was fitted on.

    Attributes:
        curve: The map.
        rows: Rows of the task's population.
        positives: How many of them are positive.
    """

    curve: Temperature | Isotonic
    rows: int
    positives: int


@dataclass(frozen=True)
class Calibration:
    """Maps from a model's probabilities to calibrated ones; see `fit_calibration`.

    Attributes:
        kind: `"temperature"` or `"isotonic"`.
        split: The split it was fitted on.
        rows: Rows of that split.
        tasks: By task, joint ones aside.
        joint: By joint task the tasks along the funnel whose probabilities make its own.
    """

    kind: Kind
    split: str
    rows: int
    tasks: dict[str, FittedTask]
    joint: dict[str, tuple[str, ...]]

    def apply(self, probabilities: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """Calibrated probabilities, in a `tf.function` or eagerly.

        A joint task's own probability is not read: it becomes the product of the calibrated ones along its funnel.

        Args:
            probabilities: float32 `[batch]` (or any other shape) by task, in [0, 1].

        Returns:
            The same tasks in the same order, float32 of the same shape; never NaN, below or above [0, 1].

        Raises:
            ValueError: Other tasks than those that were calibrated.

        Example:
            >>> calibration.apply({task: p[:, 0] for task, p in model(features).items()})
        """
        names = {*self.tasks, *self.joint}
        if set(probabilities) != names:
            raise ValueError(
                f"the calibration is of the tasks {', '.join(sorted(names))}; it was given {', '.join(probabilities)}"
            )
        calibrated = {task: fitted.curve(probabilities[task]) for task, fitted in self.tasks.items()}
        for task, chain in self.joint.items():
            product = calibrated[chain[0]]
            for step in chain[1:]:
                product = product * calibrated[step]
            calibrated[task] = product
        return {task: calibrated[task] for task in probabilities}

    def describe(self) -> dict[str, Any]:
        """What the model card says: kind, split, rows, and per task its rows, positives, and T or the number of knots.

        Example:
            >>> calibration.describe()["tasks"]["click"]
            {'rows': 20000, 'positives': 4012, 'temperature': 1.08}
        """
        tasks = {
            task: {"rows": fitted.rows, "positives": fitted.positives, **fitted.curve.describe()}
            for task, fitted in self.tasks.items()
        }
        joint = {task: list(chain) for task, chain in self.joint.items()}
        return {"kind": self.kind, "split": self.split, "rows": self.rows, "tasks": tasks, "joint": joint}


def fit_calibration(
    model: keras.Model, dataset: Dataset, kind: Kind, split: str = "valid", progress: Progress | None = None
) -> Calibration:
    """Fits a map from predicted to calibrated probabilities for each task, on rows that the model was not trained on.

    Each label is calibrated on its own population: click on all rows, conversion on clicked ones. Joint probabilities
    become products along the funnel, `p(ctcvr) = p(click) p(conversion | click)`, so that the outputs stay consistent.
    The rows that were not clicked say nothing about conversion given a click: there the map of conversion is an
    extrapolation, and nothing makes the product calibrated on all rows. Nor does the product keep the order of rows by
    ctcvr, as its factors change by different maps. Measure both: `measured_change` has ctcvr too. (On 60,000 synthetic
    rows with 325 conversions to fit on, isotonic maps cost ctcvr 0.002 to 0.005 of AUC, temperatures up to 0.002.)

    One pass over the split, in memory that does not depend on its rows.

    Args:
        model: A model whose `predict_on_batch` gives probabilities by task.
        dataset: The dataset it was trained on, or one that its schema fits.
        kind: `"temperature"` (one number per task, see `fit_temperature`) or `"isotonic"` (up to 200 knots per task,
            see `fit_isotonic`; it wants thousands of positives).
        split: Which split; not the one that the model was trained on.
        progress: Called with rows done and rows in all.

    Returns:
        The calibration.

    Raises:
        ValueError: An unknown kind.
        DataError: The split is unknown or empty, its schema is not the model's, a task has no positives or no negatives
            in it, or no map fits.

    Example:
        >>> calibration = fit_calibration(model, dataset, "isotonic")
        >>> calibration.describe()["tasks"]["click"]["knots"]
        87

    Source: see `fit_temperature` and `fit_isotonic`; funnels are our design.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, is {kind!r}")
    check_same_data(model, dataset)
    targets = dataset.schema.targets
    histograms = {target.name: LogOddsHistogram() for target in targets if not target.is_joint}
    rows, total = 0, dataset.rows(split)
    with dataset.damaged_shards_named(split):
        for features, labels, weights in dataset.read(split, EVALUATION_BATCH):
            predictions = model.predict_on_batch(features)
            for task, histogram in histograms.items():
                histogram.add(labels[task], predictions[task], weights[task])
            rows += len(next(iter(predictions.values())))
            if progress is not None:
                progress(rows, total)
    where = {task: f"{dataset.folder}: {task} on the split {split!r}" for task in histograms}
    for task, histogram in histograms.items():
        _require_both_outcomes(histogram, where[task])
    fitted = {task: _fitted(histogram, kind, where[task]) for task, histogram in histograms.items()}
    return Calibration(kind, split, rows, fitted, {t.name: t.positive for t in targets if t.is_joint})


def _require_both_outcomes(histogram: LogOddsHistogram, where: str) -> None:
    if not 0 < histogram.positives < histogram.rows:
        lacking = "positives" if histogram.positives == 0 else "negatives"
        raise DataError(
            f"{where}: there are no {lacking} among {histogram.rows} rows to calibrate with; give a split that has "
            "both, or export without calibration"
        )


def _fitted(histogram: LogOddsHistogram, kind: Kind, where: str) -> FittedTask:
    fit = fit_temperature if kind == "temperature" else fit_isotonic
    try:
        return FittedTask(fit(histogram), histogram.rows, histogram.positives)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def measured_change(
    before: Predict, after: Predict, dataset: Dataset, split: str, progress: Progress | None = None
) -> dict[str, Any]:
    """What a change of a model does to its metrics, in one pass over a split.

    Args:
        before: From packed features to probabilities `[batch]` or `[batch, 1]` by task: `model.predict_on_batch`, say.
        after: The same of the changed model.
        dataset: The dataset.
        split: Which split.
        progress: Called with rows done and rows in all.

    Returns:
        `{"split", "rows", "tasks": {task: {"before": {...}, "after": {...}}}}` with `auc`, `log_loss`, `calibration`
        (predicted over observed positives) and `ece` of each task on its own population, ctcvr on all rows; `None`
        where a value does not exist.

    Raises:
        DataError: The split is unknown or empty.

    Example:
        >>> small = quantized(model, "int8")
        >>> change = measured_change(model.predict_on_batch, small.predict_on_batch, dataset, "test")
        >>> change["tasks"]["click"]["after"]["auc"]
        0.7712

    Source: our design.
    """
    tasks = [target.name for target in dataset.schema.targets]
    sides = {"before": before, "after": after}
    evaluations = {task: {side: TaskEvaluation() for side in sides} for task in tasks}
    rows, total = 0, dataset.rows(split)
    with dataset.damaged_shards_named(split):
        for features, labels, weights in dataset.read(split, EVALUATION_BATCH):
            for side, predict in sides.items():
                predictions = predict(features)
                for task in tasks:
                    evaluations[task][side].update(labels[task], predictions[task], weights[task])
            rows += len(labels[tasks[0]])
            if progress is not None:
                progress(rows, total)
    return {
        "split": split,
        "rows": rows,
        "tasks": {
            task: {side: _measures(evaluation) for side, evaluation in by_side.items()}
            for task, by_side in evaluations.items()
        },
    }


def _measures(evaluation: TaskEvaluation) -> dict[str, Any]:
    result = evaluation.result()
    return {measure: result[measure] for measure in _MEASURES}


def refuse_past(change: dict[str, Any], max_auc_drop: float, max_calibration_change: float) -> None:
    """Refuses a change that costs too much: `auc_before - auc_after`, or `|calibration_after - calibration_before|`.

    Args:
        change: From `measured_change`.
        max_auc_drop: Most that the AUC of a task may fall.
        max_calibration_change: Most that the calibration ratio of a task may move, up or down.

    Raises:
        DataError: A task is past a limit, or has no value to compare; the message names task, value and limit.

    Example:
        >>> refuse_past(change, max_auc_drop=0.001, max_calibration_change=0.02)
    """
    for task, sides in change["tasks"].items():
        before, after = sides["before"], sides["after"]
        for measure, limit in (("auc", max_auc_drop), ("calibration", max_calibration_change)):
            old, new = before[measure], after[measure]
            where = f"{task}: {measure} on the split {change['split']!r}"
            if old is None or new is None:
                raise DataError(
                    f"{where} cannot be compared, it is {_shown(old)} before and {_shown(new)} after; measure on a "
                    "split with positives and negatives of every task"
                )
            moved = old - new if measure == "auc" else abs(new - old)
            if moved > limit:
                raise DataError(
                    f"{where} goes from {_shown(old)} to {_shown(new)}, by {moved:.2g}; the limit is {limit:g}: raise "
                    "it, or export without this change"
                )


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.5f}"
