"""Figures of what a model learned to share, drawn without any global state of matplotlib's."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mtlzoo.inspection.sharing import Sharing, pattern_names
from mtlzoo.inspection.tickets import TicketSearch

# Okabe and Ito's colours, which colour-blind readers can tell apart; the first two also differ in brightness.
_TASK_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_SHARED, _SHARED_BY_SOME, _DEAD = "#1f1f2e", "#77777f", "#e6e6e6"
TEXT, FAINT, GRID = "#333333", "#bbbbbb", "#eeeeee"
WIDTH = 7.2  # inches

_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": TEXT,
    "text.color": TEXT,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "mtlzoo",  # the same figure gives the same file
}


@contextmanager
def styled() -> Iterator[None]:
    """The project's style for all that is drawn inside."""
    with mpl.rc_context(_STYLE):
        yield


def image_of(figure: Figure, kind: str = "svg") -> bytes:
    """A figure as the bytes of an SVG or PNG file.

    Args:
        figure: The figure.
        kind: `"svg"` or `"png"`.
    """
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def task_colours(tasks: Sequence[str]) -> dict[str, str]:
    """A colour for each task; they repeat after six."""
    return {task: _TASK_COLOURS[i % len(_TASK_COLOURS)] for i, task in enumerate(tasks)}


def pattern_colours(tasks: Sequence[str]) -> dict[str, str]:
    """A colour for each pattern of `pattern_names`: the task's own, dark where shared, light where dead."""
    shared_and_dead = {"shared": _SHARED, "shared by all": _SHARED, "shared by some": _SHARED_BY_SOME, "dead": _DEAD}
    of_tasks = list(task_colours(tasks).values())
    rest = [shared_and_dead[pattern] for pattern in pattern_names(tasks)[len(tasks) :]]
    return dict(zip(pattern_names(tasks), of_tasks + rest, strict=True))


def pattern_bars(parts: Sequence[Sharing]) -> Figure:
    """Per layer or field, a bar of the shares of its patterns.

    Args:
        parts: What each bar is of, from top to bottom.
    """
    colours = pattern_colours(parts[0].tasks)
    names = pattern_names(parts[0].tasks)
    if len(parts[0].tasks) == 2:  # shared between the two: each task's density is then one stretch of the bar
        names = [names[0], names[2], names[1], names[3]]
    with styled():
        figure = Figure(figsize=(WIDTH, 1.0 + 0.24 * len(parts)), layout="constrained")
        axes = figure.add_subplot()
        rows = range(len(parts))
        left = [0.0] * len(parts)
        for name in names:
            shares = [part.shares[name] for part in parts]
            axes.barh(rows, shares, left=left, height=0.72, color=colours[name], label=name)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        name_rows(axes, [part.name for part in parts])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("share of connections")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def overlap_dots(parts: Sequence[Sharing]) -> Figure:
    """Per layer, the overlap of each pair of tasks beside that of independent masks.

    Args:
        parts: What each row is of, from top to bottom; of at least two tasks.
    """
    pairs = [overlap.tasks for overlap in parts[0].overlaps]
    highest = max(max(overlap.jaccard, overlap.independent) for part in parts for overlap in part.overlaps)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.8 + len(pairs) * (0.45 + 0.26 * len(parts))), layout="constrained")
        panels = figure.subplots(len(pairs), 1, sharex=True, squeeze=False)[:, 0]
        for index, (axes, tasks) in enumerate(zip(panels, pairs, strict=True)):
            overlaps = [part.overlaps[index] for part in parts]
            measured, chance = [o.jaccard for o in overlaps], [o.independent for o in overlaps]
            rows = range(len(parts))
            axes.hlines(rows, chance, measured, color=FAINT, linewidth=2.5, zorder=1)
            axes.scatter(
                chance, rows, s=90, facecolor="white", edgecolor=TEXT, label="independent masks", clip_on=False
            )
            axes.scatter(measured, rows, s=30, color=_SHARED, label="measured", clip_on=False, zorder=3)
            name_rows(axes, [part.name for part in parts])
            axes.grid(axis="x", color=GRID)
            axes.set_axisbelow(True)
            axes.set_title(f"{tasks[0]} and {tasks[1]}")
        panels[-1].set_xlim(0, min(1.0, 1.2 * highest) or 1.0)
        panels[-1].set_xlabel("overlap (Jaccard index): shared by both, of those that either uses")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def density_lines(densities: dict[str, list[float]], best_epoch: int | None = None) -> Figure:
    """The density of each task's masks, epoch by epoch.

    Args:
        densities: By task, one value per epoch; NaN where there is none.
        best_epoch: The epoch whose model was kept, from 1.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for (task, values), colour in zip(densities.items(), task_colours(list(densities)).values(), strict=True):
            axes.plot(range(1, len(values) + 1), values, color=colour, marker="o", markersize=4, label=task)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=FAINT, linestyle="--", zorder=0, label="epoch that was kept")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("epoch")
        axes.set_ylabel("open connections")
        axes.grid(axis="y", color=GRID)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def ticket_panels(searches: dict[str, TicketSearch], value_name: str) -> Figure:
    """For each task, the validation value of its tickets against their density, and the one that was chosen.

    Args:
        searches: By task, what was tried.
        value_name: What the values are.
    """
    columns = min(len(searches), 3)
    rows = math.ceil(len(searches) / columns)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.4 + 2.4 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        colours = task_colours(list(searches))
        for axes, (task, search) in zip(panels, searches.items(), strict=False):
            densities = [entry.density for entry in search.rounds]
            values = [math.nan if entry.value is None else entry.value for entry in search.rounds]
            axes.plot(densities, values, color=colours[task], marker="o", markersize=4)
            chosen = search.rounds[search.chosen].density, values[search.chosen]
            axes.scatter(*chosen, s=130, facecolor="none", edgecolor=_SHARED, linewidth=1.5, label="chosen", zorder=3)
            axes.set_xscale("log")
            axes.invert_xaxis()
            named = densities[:: math.ceil(len(densities) / 6)]  # more labels would run into each other
            axes.set_xticks(named, [f"{100 * density:.3g}%" for density in named])
            axes.set_xticks([], minor=True)
            axes.set_title(task)
            axes.set_xlabel("density of the ticket")
            axes.grid(axis="y", color=GRID)
            axes.ticklabel_format(axis="y", useOffset=False)
        for axes in panels[::columns]:
            axes.set_ylabel(value_name)
        for axes in panels[len(searches) :]:
            axes.remove()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left")
    return figure


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names rows from top to bottom, row i at height i."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
