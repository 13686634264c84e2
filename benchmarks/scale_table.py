"""How cost grows, from the results of `scale_curves.py`: fits, tables, and a figure of small panels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from paired import Interval, mean_interval
from rich.table import Table

BILLION = 10**9
Runs = Mapping[str, Mapping[str, Any]]  # by `run_key`: per curve what was measured


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        values: In ascending order.
        curves: What is measured at each value.
        label: In tables and below panels.
        unit: Slopes are told for so many.
        unit_name: What so many are called.
        to_a_billion: Whether the lines are drawn out to a billion.
    """

    values: tuple[int, ...]
    curves: tuple[str, ...]
    label: str
    unit: float
    unit_name: str
    to_a_billion: bool = False


@dataclass(frozen=True)
class Curve:
    """What is measured.

    Attributes:
        label: In the figure's legend.
        scale: From seconds to what is shown.
        unit: What is shown.
        cost: What the unit is of, in tables.
        colour: In the figure.
    """

    label: str
    scale: float
    unit: str
    cost: str
    colour: str


AXES = {
    "rows": Axis(
        (125_000, 250_000, 500_000, 1_000_000, 2_000_000), ("convert", "read"), "rows of the log", 1e6, "million", True
    ),
    "fields": Axis((6, 12, 23, 46, 92), ("step",), "fields", 1, "field"),
    "embedding_rows": Axis(
        (100_000, 400_000, 2_000_000, 8_000_000, 20_000_000), ("step",), "embedding rows", 1e6, "million", True
    ),
    "experts": Axis((1, 2, 4, 8, 16), ("step",), "experts", 1, "expert"),
    "tasks": Axis(tuple(range(1, 9)), ("step",), "tasks", 1, "task"),
    "batch_size": Axis(tuple(256 << i for i in range(7)), ("step",), "impressions in a batch", 1e3, "thousand"),
}
CURVES = {
    "convert": Curve("conversion", 1.0, "s", "s", "#D55E00"),
    "read": Curve("an epoch read", 1.0, "s", "s", "#009E73"),
    "step": Curve("a training step", 1e3, "ms", "ms/step", "#0072B2"),
}


@dataclass(frozen=True)
class Line:
    """`cost = fixed + per_unit * value`."""

    fixed: float
    per_unit: float

    def at(self, value: float) -> float:
        """The cost at a value."""
        return self.fixed + self.per_unit * value


def line_fit(values: Sequence[float], costs: Sequence[float]) -> Line:
    """The line with the least sum of squared differences to the costs; of two values or more."""
    per_unit, fixed = np.polyfit(np.asarray(values, float), np.asarray(costs, float), 1)
    return Line(float(fixed), float(per_unit))


def upper_half(values: Sequence[int]) -> list[int]:
    """The larger half of the values, with the one in the middle, and at least two."""
    return sorted(values)[-(len(values) // 2 + 1) :]


def local_exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """`p` of `cost ~ value^p`: the slope of the costs' logarithms on those of the values."""
    return line_fit(np.log(values).tolist(), np.log(costs).tolist()).per_unit


def run_key(axis: str, value: int, turn: int) -> str:
    """Where the result of one run stands in the file."""
    return f"{axis}/{value}/{turn}"


def by_round(runs: Runs, axis: str, value: int, curve: str, quantity: str) -> dict[int, float]:
    """A measured quantity by round, for the rounds that there are."""
    prefix = run_key(axis, value, 0)[:-1]
    found = {int(key.removeprefix(prefix)): run for key, run in runs.items() if key.startswith(prefix)}
    return {turn: found[turn][curve][quantity] for turn in sorted(found)}


def measured_values(runs: Runs, axis: str) -> list[int]:
    """The values of an axis that have runs, in ascending order."""
    return sorted({int(key.split("/")[1]) for key in runs if key.startswith(f"{axis}/")})


def medians(runs: Runs, axis: str, curve: str, quantity: str) -> dict[int, float]:
    """By value the median over rounds."""
    return {
        value: statistics.median(by_round(runs, axis, value, curve, quantity).values())
        for value in measured_values(runs, axis)
    }


def fitted_line(runs: Runs, axis: str, curve: str, quantity: str) -> Line | None:
    """The line through the medians; `None` where there are fewer than two values."""
    found = medians(runs, axis, curve, quantity)
    return line_fit(list(found), list(found.values())) if len(found) > 1 else None


def exponent(runs: Runs, axis: str, curve: str, quantity: str) -> Interval | None:
    """The local exponent over the upper half of the values: mean over the rounds that have them all, and its interval.

    `None` where no round has them, or there are fewer than two values.
    """
    values = upper_half(measured_values(runs, axis))
    if len(values) < 2:
        return None
    costs = [by_round(runs, axis, value, curve, quantity) for value in values]
    turns = sorted(set.intersection(*(set(of_value) for of_value in costs)))
    slopes = [local_exponent(values, [of_value[turn] for of_value in costs]) for turn in turns]
    return mean_interval(slopes) if slopes else None


def shown(value: float) -> str:
    """Three significant digits, but no fewer than those before the point."""
    if value == 0.0:
        return "0"
    rounded = float(f"{abs(value):.2e}")
    return f"{value:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


def _with_range(values: Sequence[float]) -> str:
    middle = shown(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))}-{shown(max(values))})"


def table_of(runs: Runs, axis: str, curve: str) -> Table:
    """One row per measured value: medians over rounds, of the cost with its range."""
    described, kind = AXES[axis], CURVES[curve]
    values = measured_values(runs, axis)
    rounds = max((len(by_round(runs, axis, value, curve, "seconds")) for value in values), default=0)
    table = Table(title=f"{kind.label} by {described.label}, rounds: {rounds}")
    for heading in (described.label, f"{kind.cost} (range)", "impressions/s", f"CPU {kind.cost}", "peak MB"):
        table.add_column(heading, justify="right")
    for value in values:
        seconds, cpu, peak, impressions = (
            list(by_round(runs, axis, value, curve, quantity).values())
            for quantity in ("seconds", "cpu_seconds", "peak_mb", "impressions")
        )
        table.add_row(
            f"{value:,}",
            _with_range([kind.scale * s for s in seconds]),
            f"{impressions[0] / statistics.median(seconds):,.0f}",
            shown(kind.scale * statistics.median(cpu)),
            f"{statistics.median(peak):,.0f}",
        )
    return table


def fits_in_words(runs: Runs, axis: str, curve: str) -> Iterator[str]:
    """A sentence on each fit: fixed cost, cost per unit, local exponent, and what the line says of a billion."""
    described, kind = AXES[axis], CURVES[curve]
    quantities = [
        ("wall clock", "seconds", kind.scale, kind.unit),
        ("CPU", "cpu_seconds", kind.scale, kind.unit),
        ("peak memory", "peak_mb", 1.0, "MB"),
    ]
    quantities += [("shards", "shard_mb", 1.0, "MB")] if curve == "convert" else []
    for name, quantity, scale, unit in quantities:
        line = fitted_line(runs, axis, curve, quantity)
        if line is None:
            continue
        slope = scale * line.per_unit * described.unit
        sign = "-" if slope < 0.0 else "+"
        text = f"{name}: {shown(scale * line.fixed)} {unit} {sign} {shown(abs(slope))} {unit} per {described.unit_name}"
        found = exponent(runs, axis, curve, quantity)
        if found is not None:
            top = upper_half(measured_values(runs, axis))
            interval = "" if math.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
            text += f"; exponent {found.mean:.2f}{interval} from {top[0]:,} to {top[-1]:,}"
        if described.to_a_billion and slope > 0.0:
            text += f"; the line at a billion: {_large(line.at(BILLION), in_mb=unit == 'MB')}"
        yield text


def _large(value: float, in_mb: bool) -> str:
    """MB as GB; seconds as hours where they are many, as milliseconds where they are few."""
    if in_mb:
        return f"{shown(value / 1e3)} GB"
    if value >= 3600.0:
        return f"{shown(value / 3600.0)} h"
    return f"{shown(value)} s" if value >= 1.0 else f"{shown(1e3 * value)} ms"


def scale_figure(runs: Runs, axes: Sequence[str]) -> Figure:
    """For each axis its times, wall clock and CPU, and below them its peak memory, in logarithmic scales.

    Args:
        runs: With two or more values of each axis.
        axes: Names of the axes, in the order of the panels.
    """
    columns = min(3, len(axes))
    bands = -(-len(axes) // columns)
    figure = Figure(figsize=(0.9 + 3.2 * columns, 0.7 + 4.3 * bands), layout="constrained")
    grid = figure.add_gridspec(2 * bands, columns, height_ratios=[1.7, 1.0] * bands)
    for i, axis in enumerate(axes):
        band, column = divmod(i, columns)
        times = figure.add_subplot(grid[2 * band, column])
        memory = figure.add_subplot(grid[2 * band + 1, column], sharex=times)
        for curve in AXES[axis].curves:
            _draw(times, runs, axis, curve, "seconds", CURVES[curve].scale)
            _draw(times, runs, axis, curve, "cpu_seconds", CURVES[curve].scale, hollow=True)
            _draw(memory, runs, axis, curve, "peak_mb", 1.0)
        _label(times, memory, axis, measured_values(runs, axis))
    _legend(figure, axes, columns)
    return figure


def _draw(panel: Axes, runs: Runs, axis: str, curve: str, quantity: str, scale: float, hollow: bool = False) -> None:
    """Medians with their ranges, and the fitted line, which is a curve where both scales are logarithmic."""
    colour = CURVES[curve].colour
    values = measured_values(runs, axis)
    of_values = [[scale * cost for cost in by_round(runs, axis, v, curve, quantity).values()] for v in values]
    middle = [statistics.median(costs) for costs in of_values]
    below = [m - min(costs) for m, costs in zip(middle, of_values, strict=True)]
    above = [max(costs) - m for m, costs in zip(middle, of_values, strict=True)]
    panel.errorbar(
        values,
        middle,
        yerr=[below, above],
        fmt="s" if hollow else "o",
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markersize=4.5,
        capsize=2.5,
        zorder=3,
    )
    line = fitted_line(runs, axis, curve, quantity)
    if line is not None:
        places = np.geomspace(values[0], values[-1], 100)
        costs = scale * np.array([line.at(place) for place in places])
        drawn = costs > 0.0
        panel.plot(places[drawn], costs[drawn], color=colour, linewidth=1.1, linestyle="--" if hollow else "-")


def _label(times: Axes, memory: Axes, axis: str, values: Sequence[int]) -> None:
    described = AXES[axis]
    ticks = list(values)[::-1][:: 2 if len(values) > 5 else 1]
    for panel in (times, memory):
        panel.set_xscale("log")
        panel.set_yscale("log")
        _widen(panel)
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    times.tick_params(labelbottom=False)
    times.set_ylabel("seconds" if "step" not in described.curves else "ms a step")
    memory.set_ylabel("peak MB")
    memory.set_xlabel(described.label)


def _widen(panel: Axes, least: float = 10.0) -> None:
    """At least a factor of ten from bottom to top, so that noise does not look like growth."""
    low, high = panel.get_ylim()
    missing = math.sqrt(max(1.0, least * low / high))
    panel.set_ylim(low / missing, high * missing)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size and value % (size / 10) == 0:
            return f"{value / size:g}{letter}"
    return f"{value:,.0f}"


def _legend(figure: Figure, axes: Sequence[str], columns: int) -> None:
    kinds = list(dict.fromkeys(curve for axis in axes for curve in AXES[axis].curves))
    handles = [Line2D([], [], color=CURVES[k].colour, marker="o", markersize=4.5, label=CURVES[k].label) for k in kinds]
    plain = {"color": "0.35", "markersize": 4.5}
    handles += [
        Line2D([], [], marker="o", linestyle="-", label="wall clock, and memory", **plain),
        Line2D([], [], marker="s", markerfacecolor="white", linestyle="--", label="CPU", **plain),
    ]
    title = "medians over rounds, and ranges; lines: a + b x"
    figure.legend(handles=handles, title=title, ncols=2 * columns - 1, loc="outside upper center", frameon=False)
