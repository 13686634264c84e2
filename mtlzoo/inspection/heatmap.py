"""A heat map of one layer: which of its connections serve which task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mtlzoo.inspection.figures import WIDTH, pattern_colours, styled
from mtlzoo.inspection.sharing import pattern_map, pattern_names

MOST_CELLS = 128


@dataclass(frozen=True)
class Cells:
    """A layer's connections, averaged into the cells of a heat map.

    Attributes:
        shape: `(inputs, units)` of the layer.
        shares: float `[rows, columns, patterns]`: of the connections of a cell, the share of each pattern.
        row_names: Name of each row; empty where rows are blocks of consecutive inputs.
        inputs_per_row: Most inputs that lie in one row.
        units_per_column: Most units that lie in one column.
    """

    shape: tuple[int, int]
    shares: np.ndarray
    row_names: tuple[str, ...]
    inputs_per_row: int
    units_per_column: int


def cells_of(masks: np.ndarray, rows: np.ndarray | None = None, fields: Sequence[str] | None = None) -> Cells:
    """Averages a layer's connections into at most 128 x 128 cells.

    Columns are blocks of units in the order of `unit_order`, rows blocks of inputs.

    Args:
        masks: Bool `[T, inputs, units]`.
        rows: Indices of the inputs in the order to show; by default as they are.
        fields: The field of each input. A row is then a field, unless there are more than 128 different ones.

    Returns:
        The cells.

    Source: our design.
    """
    patterns = pattern_map(masks)[:, unit_order(masks)]  # [inputs, units]
    inputs, units = patterns.shape
    names = tuple(dict.fromkeys(fields or ()))
    if 0 < len(names) <= MOST_CELLS:
        place = np.array([names.index(field) for field in fields or ()])
        patterns = patterns[np.argsort(place, kind="stable")]
        inputs_per_row = int(np.bincount(place).max())
        starts = np.searchsorted(np.sort(place), range(len(names)))
    else:
        names = ()
        patterns = patterns if rows is None else patterns[rows]
        inputs_per_row = math.ceil(inputs / MOST_CELLS)
        starts = np.arange(0, inputs, inputs_per_row)
    units_per_column = math.ceil(units / MOST_CELLS)
    columns = np.arange(0, units, units_per_column)
    sizes = np.outer(np.diff([*starts, inputs]), np.diff([*columns, units]))
    totals = [
        np.add.reduceat(np.add.reduceat(patterns == p, starts, axis=0, dtype=np.int64), columns, axis=1)
        for p in range(len(pattern_names([""] * len(masks))))
    ]
    shares = np.stack(totals, axis=-1) / sizes[:, :, None]
    return Cells((inputs, units), shares, names, inputs_per_row, units_per_column)


def unit_order(masks: np.ndarray) -> np.ndarray:
    """The units of a layer, from the one that most favours the first task to the one that most favours the last.

        open connections of the first task - open connections of the last task

    Args:
        masks: Bool `[T, inputs, units]`.

    Returns:
        Indices `[units]`; units that favour neither stay in their order.

    Source: our design.
    """
    used = np.count_nonzero(masks, axis=1)  # [T, units]
    return np.argsort(used[-1] - used[0], kind="stable")


def colours_of(cells: Cells, tasks: Sequence[str]) -> np.ndarray:
    """The colour of each cell: its patterns' colours, mixed by their shares.

    Returns:
        float `[rows, columns, 3]`, red, green and blue in [0, 1].
    """
    palette = np.array([to_rgb(colour) for colour in pattern_colours(tasks).values()])
    return cells.shares @ palette


def heat_map(cells: Cells, tasks: Sequence[str]) -> Figure:
    """Inputs from top to bottom, units from left to right.

    Args:
        cells: From `cells_of`.
        tasks: Names of the tasks.
    """
    rows, columns, _ = cells.shares.shape
    row_height = 0.17 if cells.row_names else min(0.17, 3.4 / rows)
    with styled():
        figure = Figure(figsize=(WIDTH, 1.0 + max(row_height * rows, 0.6)), layout="constrained")
        axes = figure.add_subplot()
        inputs_per_row = 1 if cells.row_names else cells.inputs_per_row
        extent = (0, columns * cells.units_per_column, rows * inputs_per_row, 0)
        axes.imshow(colours_of(cells, tasks), aspect="auto", interpolation="nearest", extent=extent)
        axes.set_xlim(0, cells.shape[1])  # the last column may hold fewer units
        order = f", from those that favour {tasks[0]} to those that favour {tasks[-1]}" if len(tasks) > 1 else ""
        axes.set_xlabel(f"units{order}")
        if cells.row_names:
            axes.set_yticks(np.arange(rows) + 0.5, cells.row_names, fontsize=8)
            axes.tick_params(axis="y", length=0)
        else:
            axes.set_ylim(cells.shape[0], 0)
            axes.set_ylabel("inputs")
        axes.spines[:].set_visible(False)
        patches = [Patch(facecolor=colour, label=name) for name, colour in pattern_colours(tasks).items()]
        figure.legend(handles=patches, loc="outside upper left", ncols=4)
    return figure
