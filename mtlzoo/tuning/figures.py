"""Figures of a search: its history, its trials as lines through the space, what mattered, and the Pareto front."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mtlzoo.inspection.figures import FAINT, GRID, TEXT, WIDTH, name_rows, styled
from mtlzoo.models.search_space import Choice, Dimension
from mtlzoo.tuning.objectives import Measure, TuningObjective
from mtlzoo.tuning.records import TrialRecord

_BEST, _PRUNED, _FAILED = "#0072b2", "#e69f00", "#d55e00"
_ROW_HEIGHT = 0.3
_COLUMN_WIDTH = 0.9
_LABEL_WIDTH = 12
_PAPER: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}


def history_figure(records: Sequence[TrialRecord], objective: TuningObjective) -> Figure:
    """The value of each trial in the order of the search, the best so far, and where trials failed.

    Args:
        records: By number; at least one with a result.
        objective: What the values are; for a Pareto front there is a panel for each measure.
    """
    done = [record for record in records if record.has_result]
    panels: list[Measure | None] = list(objective.measures) if objective.several else [None]
    with styled():
        figure = Figure(figsize=(WIDTH, 0.6 + 2.2 * len(panels)), layout="constrained")
        for axes, measure in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            values = [_value(record, measure) for record in done]
            rises = (measure.direction if measure else objective.direction) == "max"
            for status, colour in (("finished", _BEST), ("pruned", _PRUNED)):
                points = [(r.number, v) for r, v in zip(done, values, strict=True) if r.status == status]
                if points:
                    axes.scatter(*zip(*points, strict=True), s=22, color=colour, label=status, zorder=3)
            best = np.maximum.accumulate(values) if rises else np.minimum.accumulate(values)
            axes.step([r.number for r in done], best, where="post", color=FAINT, label="best so far")
            failed = [record.number for record in records if record.status == "failed"]
            if failed:
                bottom = [0.02] * len(failed)
                axes.scatter(
                    failed, bottom, marker="x", color=_FAILED, label="failed", transform=axes.get_xaxis_transform()
                )
            axes.set_ylabel(str(measure or objective) if len(str(measure or objective)) < 40 else "value")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(axis="y", color=GRID)
        axes.set_xlabel("trial")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def coordinates_figure(records: Sequence[TrialRecord], space: Mapping[str, Dimension], name: str) -> Figure:
    """Each trial as a line through its hyper-parameters, the better the darker.

    Args:
        records: With a result, the worst first.
        space: What was searched.
        name: What they are ordered by.
    """
    shade = colormaps["Blues"]
    with styled():
        width = max(WIDTH, _COLUMN_WIDTH * (len(space) + 1))
        figure = Figure(figsize=(width, 3.4), layout="constrained")
        axes = figure.add_subplot()
        columns = range(len(space))
        for place, record in enumerate(records):
            good = (place + 1) / len(records)
            heights = [dimension.position(record.values[key]) for key, dimension in space.items()]
            axes.plot(columns, heights, color=shade(0.15 + 0.85 * good), linewidth=0.7 + 1.3 * good**4, zorder=2 + good)
        for column, dimension in enumerate(space.values()):
            axes.axvline(column, color=FAINT, linewidth=0.8, zorder=1)
            for value in dimension.values if isinstance(dimension, Choice) else dimension.ends:
                label = textwrap.fill(dimension.text(value), _LABEL_WIDTH)
                x, y = column + 0.06, dimension.position(value)
                axes.text(x, y, label, va="center", fontsize=7, color=TEXT, bbox=_PAPER, in_layout=False, zorder=5)
        axes.set_xticks(columns, list(space), rotation=25, ha="right")
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(space) - 0.5)
        axes.spines[:].set_visible(False)
        axes.set_title(f"the darker, the better {name}")
    return figure


def importance_figure(importance: np.ndarray, names: Sequence[str]) -> Figure:
    """Hyper-parameters by importance, from top to bottom.

    Args:
        importance: Of `hyperparameter_importance`.
        names: Of the hyper-parameters, in the same order.
    """
    order = np.argsort(importance)[::-1]
    with styled():
        figure = Figure(figsize=(WIDTH, 0.7 + _ROW_HEIGHT * len(names)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(names)), importance[order], height=0.6, color=_BEST)
        name_rows(axes, [names[i] for i in order])
        axes.set_xlim(left=0.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("share of the variance of the objective")
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
    return figure


def front_figure(records: Sequence[TrialRecord], front: Sequence[int], measures: Sequence[Measure]) -> Figure:
    """Trials by two measures at a time, and the front of those that none beats.

    Args:
        records: With a result.
        front: Numbers of the trials on the front.
        measures: At least two.
    """
    pairs = list(itertools.combinations(measures, 2))
    with styled():
        figure = Figure(figsize=(WIDTH, 0.4 + 3.0 * len(pairs)), layout="constrained")
        for axes, (a, b) in zip(figure.subplots(len(pairs), 1, squeeze=False)[:, 0], pairs, strict=True):
            points = {record.number: (a.of(record.evaluation), b.of(record.evaluation)) for record in records}
            others = [point for number, point in points.items() if number not in front]
            best = sorted(points[number] for number in front)
            if others:
                axes.scatter(*zip(*others, strict=True), s=20, color=FAINT, label="beaten by another trial")
            axes.plot(*zip(*best, strict=True), color=_BEST, marker="o", markersize=5, linewidth=0.8, label="front")
            for number in front:
                axes.annotate(f" {number}", points[number], fontsize=7, color=TEXT)
            axes.set_xlabel(str(a))
            axes.set_ylabel(str(b))
            axes.grid(color=GRID)
            axes.set_axisbelow(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _value(record: TrialRecord, measure: Measure | None) -> float:
    if measure is not None:
        return measure.of(record.evaluation)
    return float("nan") if record.value is None else record.value
