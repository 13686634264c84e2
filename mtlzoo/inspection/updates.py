"""How much the parts of a recurrent model let in, step by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from mtlzoo.inspection.sample import Sample, default_split, draw_samples
from mtlzoo.models.histories import history_pairs
from mtlzoo.training.same_data import check_same_data
from pipelines import Dataset

SHARED = "shared"


@dataclass(frozen=True)
class StepGate:
    """How far the update gate of one part is open in one step: 0 lets nothing in, 1 everything.

    Attributes:
        mean: Over rows and units.
        low: 10 % quantile, over units, of a unit's mean over rows.
        high: 90 % quantile of the same.
        deviation: Standard deviation over rows, mean over units: 0 where the gate looks at nothing.
    """

    mean: float
    low: float
    high: float
    deviation: float


@dataclass(frozen=True)
class UpdateGates:
    """Update gates of the parts of a recurrent model: the shared part on all impressions, a label's on its population.

    Attributes:
        split: The split that they were taken on.
        axis: What the steps are: `"depth"` or `"field"`.
        steps: Names of the steps: numbers from 1, or the fields.
        labels: All labels of the model, in order.
        parts: By part, `"shared"` or a label, a gate per step.
        transfer: By label that hears its parent, mean and standard deviation over rows of how much of what it reads
            comes from there.
    """

    split: str
    axis: str
    steps: tuple[str, ...]
    labels: tuple[str, ...]
    parts: dict[str, tuple[StepGate, ...]]
    transfer: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "split": self.split,
            "axis": self.axis,
            "steps": list(self.steps),
            "parts": {part: [asdict(gate) for gate in gates] for part, gates in self.parts.items()},
            "transfer": {
                label: {"mean": mean, "deviation": deviation} for label, (mean, deviation) in self.transfer.items()
            },
        }


def has_update_gates(model: Any) -> bool:
    """Whether a model can say what its recurrences let in: it says so by a property of this name."""
    return bool(getattr(model, "has_update_gates", False))


def mean_update_gates(
    model: Any,
    dataset: Dataset,
    split: str | None = None,
    max_rows: int = 20_000,
    batch_size: int = 2_048,
    seed: int = 1,
) -> UpdateGates:
    """How far the update gates of each part are open in each step, on the part's own population.

        m_(l,j) = sum_i w_i z_(l,j)(x_i) / sum_i w_i        s_(l,j)^2 = sum_i w_i (z_(l,j)(x_i) - m_(l,j))^2 / sum_i w_i
        mean_l = mean_j m_(l,j)        low_l, high_l = quantiles_j m_(l,j)        deviation_l = mean_j s_(l,j)

    z_(l,j) is the update gate of the part's unit j in step l. The rows i and their weights w are those of
    `draw_samples`: all impressions for the shared part, a label's own population for its part and for what it hears
    from its parent. Means are carried from batch to batch: no gates of earlier batches are kept.

    Args:
        model: A model whose `has_update_gates` is true, with methods `update_gates(features)` and
            `transfer_weights(features)` (`mtlzoo.models.DCRNN`).
        dataset: The dataset; its vocabularies must be those that the model was trained with.
        split: Which split; default: `"test"`, or `"valid"` where the test split is empty.
        max_rows: Most rows of each population, at least 100.
        batch_size: Impressions per step; all gates of one batch are in memory.
        seed: Of the sample.

    Returns:
        The gates. Parts whose population has no rows are left out.

    Raises:
        ValueError: The model has no update gates.
        DataError: The split is unknown or empty, or the dataset does not fit the model.

    Example:
        >>> updates = mean_update_gates(mtlzoo.models.DCRNN(dataset.schema, units=96), dataset)
        >>> {part: len(gates) for part, gates in updates.parts.items()}
        {'shared': 3, 'click': 3, 'conversion': 3}

    Source: our design.
    """
    if not has_update_gates(model):
        raise ValueError(f"{model.name} has no update gates to explain; dcrnn with learned gates (gru, lstm) has them")
    check_same_data(model, dataset)
    split = split if split is not None else default_split(dataset)
    axis, steps = _axis_and_steps(model)
    populations = {SHARED: (), **{task.name: task.population for task in model.tasks}}
    gates: defaultdict[tuple[str, int], _Moments] = defaultdict(_Moments)
    transfer: defaultdict[str, _Moments] = defaultdict(_Moments)
    for sample in draw_samples(dataset, model.tasks, split, max_rows, seed):
        for batch, weights in _batches(sample, batch_size):
            for part, opened in model.update_gates(batch).items():
                if populations[part] == sample.population:
                    for step, gate in enumerate(opened):
                        gates[part, step].add(gate, weights)
            for label, heard in model.transfer_weights(batch).items():
                if populations[label] == sample.population:
                    transfer[label].add(heard, weights)
    parts = {
        part: tuple(gates[part, i].gate() for i in range(len(steps))) for part in model.parts if (part, 0) in gates
    }
    labels = tuple(label.name for label in model.schema.labels)
    heard_by = {label: transfer[label].mean_and_deviation() for label in labels if label in transfer}
    return UpdateGates(split, axis, steps, labels, parts, heard_by)


class _Moments:
    """Weighted mean and squared deviations of units over rows, from batch to batch."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._means: Any = 0.0
        self._squares: Any = 0.0

    def add(self, values: Any, weights: np.ndarray) -> None:
        """Adds a batch, `[n, units]` or `[n]`, with weights `[n]`."""
        # Around the mean of each batch: the difference of two large sums would leave a constant a deviation.
        values = keras.ops.convert_to_numpy(values).astype(np.float64)
        weight = float(weights.sum())
        means = np.average(values, axis=0, weights=weights)
        apart, total = means - self._means, self._weight + weight
        self._squares += weights @ (values - means) ** 2 + apart**2 * (self._weight * weight / total)
        self._means += apart * (weight / total)
        self._weight = total

    def gate(self) -> StepGate:
        """What all batches say of a gate."""
        low, high = np.quantile(self._means, (0.1, 0.9)).tolist()
        mean, deviation = self.mean_and_deviation()
        return StepGate(mean, low, high, deviation)

    def mean_and_deviation(self) -> tuple[float, float]:
        """Means over units of mean and standard deviation over rows."""
        return float(np.mean(self._means)), float(np.mean(np.sqrt(self._squares / self._weight)))


def _batches(sample: Sample, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """The sample's features in batches, and the weights of their rows."""
    for start in range(0, len(sample.weights), batch_size):
        rows = slice(start, start + batch_size)
        yield {name: values[rows] for name, values in sample.features.items()}, sample.weights[rows]


def _axis_and_steps(model: Any) -> tuple[str, tuple[str, ...]]:
    """What the steps of a model's recurrences are, and their names."""
    config, schema = model.get_config(), model.schema
    if config["axis"] != "field":
        return "depth", tuple(str(step) for step in range(1, config["steps"] + 1))
    # In the order in which the model puts its fields: embedded, numbers as one field, lists that are read in order.
    fields = [feature.name for feature in (*schema.packed_categorical, *schema.multis)]
    fields += ["numeric"] if schema.packed_numeric else []
    fields += [f"{history} in order" for history in history_pairs(schema, config["histories"])]
    return "field", tuple(fields)
