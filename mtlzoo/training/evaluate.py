"""All metrics of all tasks of a model on one split, each on its own population."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from mtlzoo.metrics import TaskEvaluation
from mtlzoo.training.same_data import check_same_data
from pipelines import Dataset

EVALUATION_BATCH = 16_384


def evaluate(
    model: keras.Model,
    dataset: Dataset,
    split: str = "test",
    batch_size: int = EVALUATION_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluates a model on a split.

    Args:
        model: A model whose `predict` gives probabilities by task.
        dataset: The dataset; its vocabularies must be those that the model was trained with.
        split: Which split.
        batch_size: Impressions per prediction step.
        progress: Called with rows done and rows in all.

    Returns:
        `{"split", "rows", "tasks": {task: {"auc", "gauc", "log_loss", "normalized_entropy", "calibration", "ece",
        "rows", "positives"}}}`. A funnel's conversion is measured on clicked rows, click and ctcvr on all rows. A value
        that does not exist (AUC without positives, GAUC without a group key) is `None`.

    Raises:
        DataError: The split is unknown or empty, or its schema is not the model's.

    Example:
        >>> evaluate(model, dataset, "valid")["tasks"]["ctcvr"]["auc"]
        0.81
    """
    check_same_data(model, dataset)
    grouped = dataset.schema.keys.group is not None
    evaluations = {target.name: TaskEvaluation(grouped=grouped) for target in dataset.schema.targets}
    rows, total = 0, dataset.rows(split)
    with dataset.damaged_shards_named(split):
        for features, labels, weights, *groups in dataset.read(split, batch_size, groups=grouped):
            predictions = model.predict_on_batch(features)
            for task, evaluation in evaluations.items():
                evaluation.update(labels[task], predictions[task], weights[task], groups[0] if groups else None)
            rows += len(next(iter(predictions.values())))
            if progress is not None:
                progress(rows, total)
    return {
        "split": split,
        "rows": rows,
        "tasks": {task: evaluation.result() for task, evaluation in evaluations.items()},
    }
