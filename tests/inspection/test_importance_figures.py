"""Figures of importance and gates: what is drawn is what was given."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from mtlzoo.inspection import FeatureImportance, GateWeights, Importance, TaskImportance
from mtlzoo.inspection.divergence import shares_of
from mtlzoo.inspection.figures import image_of
from mtlzoo.inspection.importance_figures import MOST_FEATURES, gate_map, ranking_bars, share_dots
from mtlzoo.tasks import Task


def task_of(name: str, features: int, seed: int = 0) -> TaskImportance:
    random = np.random.default_rng(seed)
    means, halves = random.normal(0.01, 0.02, features), random.random(features) * 0.02
    found = tuple(
        FeatureImportance(f"$f_{i}$", mean, mean - half, mean + half, (mean,))
        for i, (mean, half) in enumerate(zip(means.tolist(), halves.tolist(), strict=True))
    )
    return TaskImportance(Task(name, name, (), False, True), 100, 20, 100, 0.7, found)


@pytest.mark.parametrize("features", [1, 7, 23])
def test_bars_and_whiskers_are_those_of_the_ranking(features):
    task = task_of("click", features)
    (axes,) = ranking_bars(task, "#0072b2", "drop of the AUC").axes
    drawn = task.ranking[:MOST_FEATURES]
    whiskers, bars = axes.containers[1], axes.containers[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [feature.feature for feature in drawn]
    np.testing.assert_allclose([bar.get_width() for bar in bars], [feature.mean for feature in drawn])
    assert [bar.get_width() for bar in bars] == sorted((f.mean for f in task.features), reverse=True)[:MOST_FEATURES]
    ends = [segment[:, 0] for segment in whiskers.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [(feature.low, feature.high) for feature in drawn])
    assert [bar.get_alpha() == 1.0 for bar in bars] == [feature.low > 0 for feature in drawn]


def test_a_feature_without_an_interval_has_a_pale_bar_and_no_whisker():
    feature = FeatureImportance("f", 0.2, None, None, (0.2,))
    task = TaskImportance(Task("click", "click", (), False, True), 100, 1, 100, 0.7, (feature,))
    (axes,) = ranking_bars(task, "#0072b2", "drop of the AUC").axes
    assert axes.containers[0][0].get_alpha() < 1
    np.testing.assert_allclose(axes.containers[1].lines[2][0].get_segments()[0][:, 0], (0.2, 0.2))


@pytest.mark.parametrize(("features", "tasks"), [(3, 2), (7, 4), (23, 4)])
def test_dots_lie_at_the_shares(features, tasks):
    by_task = {f"task_{i}": task_of(f"task_{i}", features, seed=i) for i in range(tasks)}
    figure = share_dots(Importance("test", "auc", 1, 100, by_task))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == min(features, MOST_FEATURES)
    drawn = {dots.get_label(): dots.get_offsets() for dots in axes.collections if dots.get_label() in by_task}
    assert drawn.keys() == by_task.keys()
    for task, offsets in drawn.items():
        shares = shares_of(by_task[task])
        np.testing.assert_allclose(offsets[:, 0], [shares[name] for name in names])
    largest = [max(shares_of(task)[name] for task in by_task.values()) for name in names]
    assert largest == sorted(largest, reverse=True)
    assert ElementTree.fromstring(image_of(figure)).tag.endswith("svg")


def test_cells_of_the_gates_hold_their_weights():
    gates = GateWeights(
        "test", ("a/x", "b/x"), {"a": {"a/x": 0.25, "b/x": 0.75}, "b": {"b/x": 1.0}}, {"a": {}, "b": {}}
    )
    (axes,) = gate_map(gates).axes
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "0.25", (0, 1): "0.75", (1, 1): "1.00",
    }  # fmt: skip
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), [[0.25, np.nan], [0.75, 1.0]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a/x", "b/x"]
