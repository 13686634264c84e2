"""How the tasks of a model with gates weigh its modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from mtlzoo.inspection.sample import default_split, draw_samples
from mtlzoo.training.evaluate import EVALUATION_BATCH
from mtlzoo.training.same_data import check_same_data
from pipelines import Dataset


@dataclass(frozen=True)
class GateWeights:
    """Weights that gates give to modules, over the rows of each task's own population.

    Attributes:
        split: The split that they were taken on.
        modules: Names of the modules, in the model's order.
        means: By task and module, the mean weight; a task has no entry for a module that it does not see.
        deviations: By task and module, the standard deviation over rows: 0 where a gate looks at nothing.
    """

    split: str
    modules: tuple[str, ...]
    means: dict[str, dict[str, float]]
    deviations: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"split": self.split, "means": self.means, "deviations": self.deviations}


def has_gates(model: Any) -> bool:
    """Whether a model can say how its tasks weigh its modules: it has a method `gate_weights`."""
    return callable(getattr(model, "gate_weights", None))


def mean_gate_weights(
    model: Any,
    dataset: Dataset,
    split: str | None = None,
    max_rows: int = 20_000,
    batch_size: int = EVALUATION_BATCH,
    seed: int = 1,
) -> GateWeights:
    """Mean weight of each module in each task, on the task's own population.

        mean_(t,m) = sum_i w_i g_(t,m)(x_i) / sum_i w_i

    The rows i and their weights w are those of `draw_samples`.

    Args:
        model: A model with `tasks` and a method `gate_weights(features)` that returns, by label and name of a module,
            weights `[batch]` (`mtlzoo.models.DTN`).
        dataset: The dataset; its vocabularies must be those that the model was trained with.
        split: Which split; default: `"test"`, or `"valid"` where the test split is empty.
        max_rows: Most rows of each population, at least 100.
        batch_size: Impressions per step.
        seed: Of the sample.

    Returns:
        The weights. Tasks whose population has no rows are left out.

    Raises:
        ValueError: The model has no gates, or names a task that is none.
        DataError: The split is unknown or empty, or the dataset does not fit the model.

    Example:
        >>> weights = mean_gate_weights(mtlzoo.models.DTN(dataset.schema, interactions=["gdcn"]), dataset)
        >>> list(weights.means["click"])
        ['click/gdcn', 'conversion/gdcn', 'shared/gdcn']

    Source: our design.
    """
    if not has_gates(model):
        raise ValueError(f"{model.name} has no gates to explain; models that weigh modules by gates have them (dtn)")
    check_same_data(model, dataset)
    split = split if split is not None else default_split(dataset)
    populations = {task.name: task.population for task in model.tasks}
    means: dict[str, dict[str, float]] = {}
    deviations: dict[str, dict[str, float]] = {}
    for sample in draw_samples(dataset, model.tasks, split, max_rows, seed):
        if not len(sample.weights):
            continue
        for task, weights in _weights_of(model, sample.features, batch_size).items():
            if task not in populations:
                raise ValueError(f"{model.name}: has gate weights of {task!r}, which is none of its tasks")
            if populations[task] == sample.population:
                means[task], deviations[task] = _moments(weights, sample.weights)
    in_order = [name for name in populations if name in means]
    modules = dict.fromkeys(module for name in in_order for module in means[name])
    return GateWeights(
        split, tuple(modules), {name: means[name] for name in in_order}, {name: deviations[name] for name in in_order}
    )


def _weights_of(model: Any, features: dict[str, np.ndarray], batch_size: int) -> dict[str, dict[str, np.ndarray]]:
    """By task and module the weights of all rows of a sample, float32 `[n]`."""
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    for start in range(0, len(next(iter(features.values()))), batch_size):
        batch = {name: values[start : start + batch_size] for name, values in features.items()}
        for task, modules in model.gate_weights(batch).items():
            for module, weights in modules.items():
                values = keras.ops.convert_to_numpy(weights).reshape(-1)
                parts.setdefault(task, {}).setdefault(module, []).append(values)
    return {
        task: {module: np.concatenate(pieces) for module, pieces in modules.items()} for task, modules in parts.items()
    }


def _moments(modules: dict[str, np.ndarray], weights: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """Weighted mean and standard deviation of each module's weights."""
    means = {module: float(np.average(values, weights=weights)) for module, values in modules.items()}
    squares = {m: np.average((values - means[m]) ** 2, weights=weights) for m, values in modules.items()}
    return means, {module: float(np.sqrt(square)) for module, square in squares.items()}
