"""Every batch once per task, with the other tasks' weights at 0."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import DataError, alternate_tasks


def test_each_task_sees_every_batch(dataset):
    batches = dataset.read("valid", 100)
    alternating = alternate_tasks(batches, ["conversion", "click"])
    assert int(alternating.cardinality()) == 2 * int(batches.cardinality())
    steps = list(alternating)
    assert len(steps) == 2 * int(batches.cardinality())
    for i, (features, labels, weights) in enumerate(batches):
        for step, task in zip(steps[2 * i : 2 * i + 2], ("conversion", "click"), strict=True):
            for name in features:
                np.testing.assert_array_equal(step[0][name], features[name])
            for name in labels:
                np.testing.assert_array_equal(step[1][name], labels[name])
                expected = weights[name].numpy() if name == task else np.zeros_like(weights[name])
                np.testing.assert_array_equal(step[2][name], expected)


def test_goes_on_for_ever_with_its_batches(dataset):
    alternating = alternate_tasks(dataset.read("valid", 100, repeat=True), ["click"])
    assert len(list(alternating.take(50))) == 50


@pytest.mark.parametrize(("tasks", "got"), [(["click", "buy"], "click, buy"), ([], "none")])
def test_unknown_tasks_are_refused(dataset, tasks, got):
    with pytest.raises(DataError, match=f"the tasks click, conversion, ctcvr that .*; got {got}"):
        alternate_tasks(dataset.read("valid", 100), tasks)
