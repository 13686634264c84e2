"""The section of a report about what a recurrence lets in, and its figure."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mtlzoo.inspection.figures import GRID, TEXT, WIDTH, styled, task_colours
from mtlzoo.inspection.section import Section, Table, picture_of
from mtlzoo.inspection.updates import SHARED, StepGate, UpdateGates

_SPREAD = 0.15  # of the parts around a step, whose distance is 1


def update_section(updates: UpdateGates) -> Section:
    """The section about update gates.

    Args:
        updates: From `mean_update_gates`.
    """
    text = (
        "How far the update gate of each part of the state is open in each step: at 0 the step lets nothing new into "
        f"the state, at 1 it lets in the whole cross. Each cell is the mean over rows of the {updates.split} split and "
        "over units; in brackets the 10 % and 90 % quantiles of the units' means, and the standard deviation of a unit "
        "from row to row, mean of all units: at 0 the gate is the same for every impression. The shared part is "
        "measured on all impressions, a task's part on the task's own population."
    )
    caption = (
        "How to read this: a line is the mean gate of a part, a bar the middle 80 % of the part's units. Where a line "
        "is low, the step hardly changes the part; a long bar says that units differ. A gate says how much of a cross "
        "is let in, not what it is worth."
    )
    tables = [_gate_table(updates)]
    if updates.transfer:
        text += (
            " The second table says how much of what a task reads its parent in the funnel has handed on: 0 nothing, 1 "
            "everything; mean and standard deviation over the rows of the task's population."
        )
        tables.append(_transfer_table(updates))
    picture = picture_of(update_lines(updates), caption)
    return Section("What the recurrence lets through", text, tuple(tables), (picture,))


def _gate_table(updates: UpdateGates) -> Table:
    by_step = zip(updates.steps, *updates.parts.values(), strict=True)
    return Table(
        (updates.axis, *updates.parts),
        tuple((step, *(_cell(gate) for gate in gates)) for step, *gates in by_step),
    )


def _cell(gate: StepGate) -> str:
    return f"{gate.mean:.3f} ({gate.low:.3f} to {gate.high:.3f}; deviation {gate.deviation:.3f})"


def _transfer_table(updates: UpdateGates) -> Table:
    return Table(
        ("task", "from its parent", "deviation"),
        tuple((label, f"{mean:.3f}", f"{deviation:.3f}") for label, (mean, deviation) in updates.transfer.items()),
    )


def update_lines(updates: UpdateGates) -> Figure:
    """Per part a line of the mean gate step by step, with bars from the 10 % to the 90 % quantile of the units.

    Args:
        updates: Gates of at least one part.
    """
    colours = {SHARED: TEXT, **task_colours(updates.labels)}
    # Side by side: bands around lines so close to each other would hide which is whose.
    apart = np.linspace(-_SPREAD, _SPREAD, len(updates.parts)) if len(updates.parts) > 1 else [0.0]
    steps = np.arange(len(updates.steps))
    with styled():
        figure = Figure(figsize=(WIDTH, 3.6 if updates.axis == "field" else 2.8), layout="constrained")
        axes = figure.add_subplot()
        for (part, gates), shift in zip(updates.parts.items(), apart, strict=True):
            lows, highs = [gate.low for gate in gates], [gate.high for gate in gates]
            axes.vlines(steps + shift, lows, highs, color=colours[part], alpha=0.35, linewidth=4.0)
            means = [gate.mean for gate in gates]
            axes.plot(steps + shift, means, color=colours[part], marker="o", markersize=4, linewidth=1.2, label=part)
        axes.set_xticks(steps, updates.steps)
        if updates.axis == "field":
            axes.tick_params(axis="x", rotation=90)
        axes.set_xlabel(updates.axis)
        axes.set_xlim(-0.5, len(steps) - 0.5)
        axes.set_ylim(bottom=0.0)
        axes.set_ylabel("update gate")
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure
