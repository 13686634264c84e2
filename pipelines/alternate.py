"""Batches that train one task at a time."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from pipelines.errors import DataError


def alternate_tasks(batches: tf.data.Dataset, tasks: Sequence[str]) -> tf.data.Dataset:
    """Every batch once per task, in turn, with the sample weights of all other tasks at 0.

    So each task's step comes from that task's loss alone, and each task sees every batch of the epoch. Losses must be
    means over the weighted impressions, as those of `mtlzoo.losses` are: then a task without weight has loss 0 and
    gradient 0.

    Args:
        batches: Batches `(features, labels, sample_weight)` as `Dataset.read` gives them.
        tasks: Names of sample weights, in the order of the steps.

    Returns:
        A `tf.data.Dataset` of `len(tasks)` times as many batches.

    Raises:
        DataError: No task, or one that the batches have no sample weight for.

    Example:
        >>> batches = alternate_tasks(dataset.read("train", shuffle=True), ["click", "conversion"])

    Source: the training of tickets in Xiao et al. (arXiv 2008.09872), whose released code takes another batch for each
    task, so that each sees half of an epoch.
    """
    weights = batches.element_spec[2] if len(batches.element_spec) == 3 else {}
    unknown = [task for task in tasks if task not in weights]
    if unknown or not tasks:
        raise DataError(
            f"alternate_tasks: give one or more of the tasks {', '.join(weights)} that the batches have sample weights "
            f"for; got {', '.join(tasks) or 'none'}"
        )

    def of_each_task(features: dict, labels: dict, weights: dict) -> tf.data.Dataset:
        steps = tf.data.Dataset.range(len(tasks))
        return steps.map(lambda step: (features, labels, _only(weights, tasks, step)))

    alternating = batches.flat_map(of_each_task)
    count = batches.cardinality()
    # A count that is infinite or unknown is negative.
    return alternating.apply(tf.data.experimental.assert_cardinality(len(tasks) * count)) if count > 0 else alternating


def _only(weights: dict, tasks: Sequence[str], step: tf.Tensor) -> dict:
    """The weights with those of all tasks but the step's at 0."""
    places = {task: i for i, task in enumerate(tasks)}
    return {
        name: weight * tf.cast(tf.equal(step, places.get(name, -1)), weight.dtype) for name, weight in weights.items()
    }
