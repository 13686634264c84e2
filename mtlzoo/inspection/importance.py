"""Permutation importance: how much of a task's score is gone when one feature says nothing any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtlzoo.inspection.permuting import Columns, Predictions, donor_rows, feature_columns
from mtlzoo.inspection.sample import Progress, Sample, default_split, draw_samples
from mtlzoo.inspection.scores import MEASURES, Measure, mean_and_error, row_scores
from mtlzoo.tasks import Task
from mtlzoo.training.evaluate import EVALUATION_BATCH
from mtlzoo.training.same_data import check_same_data
from pipelines import Dataset, Schema

MEASURE_NAMES = {"auc": "drop of the AUC", "log_loss": "rise of the log loss"}
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class FeatureImportance:
    """What one feature is worth to one task.

    Attributes:
        feature: Its name.
        mean: Drop of the score when it is permuted, mean over the repeats.
        low: Lower end of the 95 % interval; `None` where a single positive or negative row leaves it open.
        high: Upper end.
        repeats: The drop of each repeat.
    """

    feature: str
    mean: float
    low: float | None
    high: float | None
    repeats: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "feature": self.feature, "mean": self.mean, "low": self.low, "high": self.high, "repeats": self.repeats
        }  # fmt: skip


@dataclass(frozen=True)
class TaskImportance:
    """What the features are worth to one task.

    Attributes:
        task: The task.
        rows: Rows of its population in the split.
        positives: Positive rows among them.
        sampled: Rows that were looked at.
        score: The unpermuted score on them, AUC or log loss; `None` where there is none: the population has only one
            class, or the model predicts NaN.
        features: In the order of the schema; empty where there is no score.
    """

    task: Task
    rows: int
    positives: int
    sampled: int
    score: float | None
    features: tuple[FeatureImportance, ...]

    @property
    def ranking(self) -> tuple[FeatureImportance, ...]:
        """The features, the most important first."""
        return tuple(sorted(self.features, key=lambda feature: -feature.mean))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "population": self.task.population,
            "rows": self.rows,
            "positives": self.positives,
            "sampled": self.sampled,
            "score": self.score,
            "features": [feature.to_dict() for feature in self.ranking],
        }


@dataclass(frozen=True)
class Importance:
    """Permutation importance of features, for each task of a model.

    Attributes:
        split: The split that it was measured on.
        measure: `"auc"` (drop of the AUC) or `"log_loss"` (rise of the log loss).
        repeats: Permutations of each feature.
        max_rows: Most rows of a population that were looked at.
        tasks: By name of the task.
    """

    split: str
    measure: Measure
    repeats: int
    max_rows: int
    tasks: dict[str, TaskImportance]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "split": self.split,
            "measure": self.measure,
            "repeats": self.repeats,
            "max_rows": self.max_rows,
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }


def permutation_importance(
    model: Any,
    dataset: Dataset,
    split: str | None = None,
    measure: Measure = "auc",
    repeats: int = 5,
    max_rows: int = 100_000,
    features: Sequence[str] | None = None,
    batch_size: int = EVALUATION_BATCH,
    seed: int = 1,
    progress: Progress | None = None,
) -> Importance:
    """How much worse a model does at each task when one feature is permuted among the rows of the task's population.

        importance(task, f) = 1/R sum_r [score(task) - score(task with f permuted by permutation r)]

    The score is the task's AUC, or minus its mean log loss, on its own population: conversion's on clicked rows, those
    of click and ctcvr on all. All that the model is fed of a feature moves together: the ids and weights of a list, a
    number, its bucket and the indicator that it was missing. 0 says that the model does as well without what the
    feature tells; a value below 0 is chance, or a feature that misleads.

    The 95 % interval is `mean -+ 1.96 error` with the error over rows of the repeats' mean (see `mean_and_error`). It
    covers the draw of the rows and of the permutations. It does not cover the training: another seed gives another
    model, with importances of its own. With fewer than some 20 positive rows it is too narrow.

    Features that tell the same share their importance, or hide each other's: permuting one leaves the other. The
    combinations that permuting makes may be ones that never occur.

    Rows are sampled by outcome (`draw_samples`), so that rare positives are all there; weights make up for it, and
    values are drawn by them: where weights are equal this is a permutation, else each row of weight w gives its value
    `n w / sum(w)` times, rounded up or down. Memory: at most `max_rows` packed rows for each population, and for one of
    them at a time some 200 bytes a row. Time: `1 + repeats * features` predictions of each population's sample.

    Args:
        model: A model with `tasks`, whose `predict_on_batch` gives probabilities by task: any model of the zoo.
        dataset: The dataset; its vocabularies must be those that the model was trained with.
        split: Which split; default: `"test"`, or `"valid"` where the test split is empty.
        measure: `"auc"` or `"log_loss"`. Features that only make predictions of the right height count in the log loss
            alone.
        repeats: Permutations R of each feature.
        max_rows: Most rows of each population, at least 100.
        features: Names of the features to look at; default: all of the schema.
        batch_size: Impressions per prediction step.
        seed: Of the sample and the permutations; the same for every feature, so that leaving some out changes nothing.
        progress: Called with the phase (`"sample"` or `"permute"`), rows done and rows in all.

    Returns:
        The importances. A task whose population holds only one class has none.

    Raises:
        ValueError: An unknown measure or feature, or a number out of its range.
        DataError: The split is unknown or empty, or the dataset does not fit the model.

    Example:
        >>> importance = permutation_importance(model, dataset, repeats=2)
        >>> [feature.feature for feature in importance.tasks["click"].ranking[:3]]
        ['category', 'position', 'member_level']

    Source: Breiman 2001, "Random forests", section 10; for any model Fisher, Rudin and Dominici 2019 (JMLR 20).
    Sampling by outcome and the interval are our design.
    """
    checked_measure(measure)
    _check_counts(repeats=repeats, batch_size=batch_size)
    columns = _columns_of(dataset.schema, features)
    check_same_data(model, dataset)
    split = split if split is not None else default_split(dataset)
    samples = draw_samples(dataset, model.tasks, split, max_rows, seed, progress)
    total = sum(len(sample.weights) for sample in samples) * (1 + repeats * len(columns))
    predict = Predictions(model, batch_size, total, progress)
    found: dict[str, TaskImportance] = {}
    for index, sample in enumerate(samples):
        tasks = [task for task in model.tasks if task.population == sample.population]
        rng = np.random.default_rng([seed, index])
        donors = [donor_rows(sample.weights, rng) for _ in range(repeats)]
        found |= _of_population(predict, sample, tasks, columns, donors, measure)
    in_order = {task.name: found[task.name] for task in model.tasks}
    return Importance(split, measure, repeats, max_rows, in_order)


def _of_population(
    predict: Predictions,
    sample: Sample,
    tasks: Sequence[Task],
    columns: dict[str, Columns],
    donors: list[np.ndarray],
    measure: Measure,
) -> dict[str, TaskImportance]:
    """The importances of the tasks of one population."""
    before: dict[str, np.ndarray] = {}
    if len(sample.weights):
        for name, predictions in predict(sample.features, tasks).items():
            if len(set(sample.labels[name].tolist())) == 2 and np.isfinite(predictions).all():
                before[name] = row_scores(measure, sample.labels[name], predictions, sample.weights)
    scored = [task for task in tasks if task.name in before]
    found: dict[str, list[FeatureImportance]] = {task.name: [] for task in tasks}
    for feature, places in columns.items() if scored else ():
        drops: dict[str, list[float]] = {task.name: [] for task in scored}
        sums = {task.name: np.zeros(len(sample.weights)) for task in scored}
        for rows in donors:
            for name, predictions in predict(sample.features, scored, places, rows).items():
                change = before[name] - row_scores(measure, sample.labels[name], predictions, sample.weights)
                drops[name].append(mean_and_error(measure, sample.labels[name], change, sample.weights)[0])
                sums[name] += change
        for name, change in sums.items():
            mean, error = mean_and_error(measure, sample.labels[name], change / len(donors), sample.weights)
            found[name].append(_with_interval(feature, mean, error, drops[name]))
    return {task.name: _of_task(task, sample, before.get(task.name), found[task.name], measure) for task in tasks}


def _with_interval(feature: str, mean: float, error: float, drops: list[float]) -> FeatureImportance:
    half = _NORMAL_95 * error
    low, high = (None, None) if math.isnan(half) else (mean - half, mean + half)
    return FeatureImportance(feature, mean, low, high, tuple(drops))


def _of_task(
    task: Task, sample: Sample, scores: np.ndarray | None, features: list[FeatureImportance], measure: Measure
) -> TaskImportance:
    score = None
    if scores is not None:
        mean, _ = mean_and_error(measure, sample.labels[task.name], scores, sample.weights)
        score = mean if measure == "auc" else -mean
    return TaskImportance(task, sample.rows, sample.positives[task.name], len(sample.weights), score, tuple(features))


def _columns_of(schema: Schema, features: Sequence[str] | None) -> dict[str, Columns]:
    columns = feature_columns(schema)
    unknown = [name for name in features or () if name not in columns]
    if unknown:
        raise ValueError(f"there are no features {', '.join(unknown)}; there are {', '.join(columns)}")
    return {name: places for name, places in columns.items() if features is None or name in features}


def checked_measure(measure: str) -> Measure:
    """The measure of that name.

    Raises:
        ValueError: There is none.
    """
    for known in MEASURES:
        if measure == known:
            return known
    raise ValueError(f"measure must be one of {', '.join(MEASURES)}, is {measure!r}")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, is {value}")
