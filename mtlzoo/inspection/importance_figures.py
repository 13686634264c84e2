"""Figures of what features are worth to tasks, and of how gates weigh modules."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mtlzoo.inspection.divergence import largest_shares, shares_of
from mtlzoo.inspection.figures import FAINT, GRID, TEXT, WIDTH, name_rows, styled, task_colours
from mtlzoo.inspection.gates import GateWeights
from mtlzoo.inspection.importance import FeatureImportance, Importance, TaskImportance

MOST_FEATURES = 20
_ROW_HEIGHT = 0.21


def ranking_bars(task: TaskImportance, colour: str, axis: str) -> Figure:
    """The most important features of a task, at most 20, with their intervals.

    Args:
        task: A task that has importances.
        colour: Of the bars; pale where the interval does not lie above 0.
        axis: What the numbers are.
    """
    ranking = task.ranking[:MOST_FEATURES]
    means = np.array([feature.mean for feature in ranking])
    halves = [0.0 if feature.high is None else feature.high - feature.mean for feature in ranking]
    with styled():
        figure = Figure(figsize=(WIDTH, 0.7 + _ROW_HEIGHT * len(ranking)), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh(range(len(ranking)), means, height=0.7, color=colour)
        for bar, feature in zip(bars, ranking, strict=True):
            bar.set_alpha(1.0 if is_above_zero(feature) else 0.35)
        axes.errorbar(means, range(len(ranking)), xerr=halves, fmt="none", ecolor=TEXT, elinewidth=1.0, capsize=2.0)
        name_rows(axes, [feature.feature for feature in ranking])
        axes.axvline(0.0, color=FAINT, linewidth=0.8)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{axis} of {task.task.name}, 95 % interval")
    return figure


def is_above_zero(feature: FeatureImportance) -> bool:
    """Whether the whole interval lies above 0."""
    return feature.low is not None and feature.low > 0.0


def share_dots(importance: Importance) -> Figure:
    """Per feature its share of each task's importance; at most the 20 features with the largest shares.

    Args:
        importance: With at least one task of positive importance.
    """
    names = list(largest_shares(importance))[:MOST_FEATURES]
    shares = {name: found for name, task in importance.tasks.items() if (found := shares_of(task))}
    colours = task_colours(list(importance.tasks))
    with styled():
        figure = Figure(figsize=(WIDTH, 1.0 + _ROW_HEIGHT * len(names)), layout="constrained")
        axes = figure.add_subplot()
        by_feature = np.array([[of_task[name] for of_task in shares.values()] for name in names])
        axes.hlines(range(len(names)), by_feature.min(1), by_feature.max(1), color=FAINT, linewidth=2.5, zorder=1)
        for column, task in enumerate(shares):
            rows = range(len(names))
            size = 72.0 * 0.6**column  # where dots lie on each other, all of them show
            axes.scatter(
                by_feature[:, column], rows, s=size, color=colours[task], label=task, clip_on=False, zorder=3 + column
            )
        name_rows(axes, names)
        axes.tick_params(axis="y", pad=8)  # a dot at 0 stands on the axis
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of the task's importance")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def gate_map(gates: GateWeights) -> Figure:
    """Modules from top to bottom, tasks from left to right; the mean weight stands in each cell.

    Args:
        gates: Weights of at least one task.
    """
    tasks = list(gates.means)
    means = np.array([[gates.means[task].get(module, np.nan) for task in tasks] for module in gates.modules])
    width = min(WIDTH, 2.0 + 1.1 * len(tasks))
    with styled():
        figure = Figure(figsize=(width, 0.6 + 0.3 * len(gates.modules)), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(means, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for row, column in np.argwhere(~np.isnan(means)):
            shown = "white" if means[row, column] > 0.55 else TEXT
            axes.text(column, row, f"{means[row, column]:.2f}", ha="center", va="center", color=shown)
        name_rows(axes, gates.modules)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.tick_params(axis="x", length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
    return figure
