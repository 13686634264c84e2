"""Samples of the rows that tasks are measured on: every kind of outcome is in them, however rare it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from mtlzoo.tasks import Task
from mtlzoo.training.evaluate import EVALUATION_BATCH
from pipelines import Dataset

Progress = Callable[[str, int, int | None], None]
SAMPLING, LEAST_ROWS = "sample", 100


@dataclass(frozen=True)
class Sample:
    """Rows of one population, with weights that make them stand for all of it.

    Attributes:
        population: Labels that must have happened for a row to count; empty: all rows of the split.
        rows: Rows of the population in the split.
        positives: By task of the population, how many of them are positive.
        features: As the dataset packs a batch, n rows; empty without rows.
        labels: By task, bool `[n]`.
        weights: float64 `[n]`: the row's sample weight, times the rows of its outcome per row that was drawn.
    """

    population: tuple[str, ...]
    rows: int
    positives: dict[str, int]
    features: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    weights: np.ndarray


def default_split(dataset: Dataset) -> str:
    """`"test"`, or `"valid"` where the test split is empty."""
    return "test" if dataset.rows("test") else "valid"


def draw_samples(
    dataset: Dataset,
    tasks: Sequence[Task],
    split: str,
    max_rows: int,
    seed: int = 1,
    progress: Progress | None = None,
) -> list[Sample]:
    """Draws a sample of each population that tasks are measured on, in two passes over a split.

    Rows of a population differ by outcome: which of its tasks are positive. Each outcome gets an equal part of
    `max_rows`, and what a rare one leaves goes to the others; within an outcome rows are drawn without replacement. So
    all conversions are in the sample long before all rows are, and a population that fits is taken whole. With `N_o`
    rows of outcome o in the split and `n_o` in the sample, a row of sample weight w weighs

        w N_o / n_o

    Memory: at most `max_rows` packed rows for each population, and one batch.

    Args:
        dataset: The dataset.
        tasks: The tasks; those of one population share a sample.
        split: Which split.
        max_rows: Most rows of each sample, at least 100.
        seed: Of the draws.
        progress: Called with `"sample"`, rows done and rows in all (of both passes).

    Returns:
        One sample per population, in the order of its first task.

    Raises:
        ValueError: `max_rows` is below 100.
        DataError: The split is unknown or empty, or a shard is damaged.

    Example:
        >>> [(sample.population, len(sample.weights)) for sample in draw_samples(dataset, model.tasks, "test", 1000)]
        [((), 1000), (('click',), 423)]

    Source: our design; stratified sampling with weights by the inverse of the chance to be drawn.
    """
    if max_rows < LEAST_ROWS:
        raise ValueError(f"max_rows must be at least {LEAST_ROWS}, is {max_rows}")
    populations = list(dict.fromkeys(task.population for task in tasks))
    draws = [_Draw([task for task in tasks if task.population == population]) for population in populations]
    done, total = 0, 2 * dataset.rows(split)
    with dataset.damaged_shards_named(split):
        for drawing in (False, True):
            for index, draw in enumerate(draws if drawing else ()):
                draw.choose(max_rows, np.random.default_rng([seed, index]))
            for batch in dataset.read(split, EVALUATION_BATCH):
                features, labels, weights = ({k: _numpy(v) for k, v in part.items()} for part in batch)
                for draw in draws:
                    if drawing:
                        draw.take(features, labels, weights)
                    else:
                        draw.count(labels, weights)
                done += len(next(iter(labels.values())))
                if progress is not None:
                    progress(SAMPLING, done, total)
    return [draw.sample() for draw in draws]


class _Draw:
    """The sample of one population while it is drawn: `count` every batch, `choose`, `take` every batch again."""

    def __init__(self, tasks: list[Task]) -> None:
        self._tasks = tasks
        self._counts: Counter[int] = Counter()
        self._seen: Counter[int] = Counter()
        self._chosen: dict[int, np.ndarray] = {}
        self._size = self._filled = 0
        self._features: dict[str, np.ndarray] = {}
        self._outcomes = np.empty(0, np.int64)
        self._weights = np.empty(0)

    def count(self, labels: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
        """Counts the outcomes of a batch."""
        _, outcomes, _ = self._members(labels, weights)
        self._counts.update(
            dict(zip(*(part.tolist() for part in np.unique(outcomes, return_counts=True)), strict=True))
        )

    def choose(self, max_rows: int, rng: np.random.Generator) -> None:
        """Decides which rows of each outcome, by their place among its rows, the sample gets."""
        for outcome, size in shares_of(self._counts, max_rows).items():
            self._chosen[outcome] = np.sort(rng.choice(self._counts[outcome], size, replace=False))
        self._size = sum(map(len, self._chosen.values()))
        self._outcomes, self._weights = np.empty(self._size, np.int64), np.empty(self._size)

    def take(
        self, features: dict[str, np.ndarray], labels: dict[str, np.ndarray], weights: dict[str, np.ndarray]
    ) -> None:
        """Takes the chosen rows of a batch."""
        members, outcomes, row_weights = self._members(labels, weights)
        wanted = np.zeros(len(members), bool)
        for outcome in np.unique(outcomes).tolist():
            own = np.flatnonzero(outcomes == outcome)
            start = self._seen[outcome]
            first, last = np.searchsorted(self._chosen[outcome], (start, start + len(own)))
            wanted[own[self._chosen[outcome][first:last] - start]] = True
            self._seen[outcome] += len(own)
        place = slice(self._filled, self._filled + int(wanted.sum()))
        for name, values in features.items():
            # Filled in place: joining the pieces at the end would take the memory twice.
            self._features.setdefault(name, np.empty((self._size, *values.shape[1:]), values.dtype))
            self._features[name][place] = values[members[wanted]]
        self._outcomes[place], self._weights[place] = outcomes[wanted], row_weights[wanted]
        self._filled = place.stop

    def sample(self) -> Sample:
        """The finished sample."""
        for outcome, chosen in self._chosen.items():
            self._weights[self._outcomes == outcome] *= self._counts[outcome] / len(chosen)
        positives = {
            task.name: sum(count for outcome, count in self._counts.items() if outcome >> k & 1)
            for k, task in enumerate(self._tasks)
        }
        labels = {task.name: (self._outcomes >> k & 1).astype(bool) for k, task in enumerate(self._tasks)}
        rows = sum(self._counts.values())
        return Sample(self._tasks[0].population, rows, positives, self._features, labels, self._weights)

    def _members(
        self, labels: dict[str, np.ndarray], weights: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The population's rows of a batch, and for each its outcome (bit k: task k is positive) and sample weight."""
        row_weights = weights[self._tasks[0].name].reshape(-1)
        members = np.flatnonzero(row_weights > 0.0)
        outcomes = np.zeros(len(members), np.int64)
        for k, task in enumerate(self._tasks):
            outcomes |= (labels[task.name].reshape(-1)[members] > 0.5).astype(np.int64) << k
        return members, outcomes, row_weights[members]


def shares_of(counts: dict[int, int], most: int) -> dict[int, int]:
    """How many of `most` rows each outcome gets: equal parts, of which a rare one leaves the others what it lacks."""
    shares: dict[int, int] = {}
    for index, (outcome, count) in enumerate(sorted(counts.items(), key=lambda item: item[1])):
        shares[outcome] = min(count, (most - sum(shares.values())) // (len(counts) - index))
    return shares


def _numpy(values: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(values)
