"""The sections of a report about masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from mtlzoo.callbacks.mask_density import density_key, masked_layers, task_names
from mtlzoo.inspection.fields import field_sharing, input_fields
from mtlzoo.inspection.figures import density_lines, overlap_dots, pattern_bars, ticket_panels
from mtlzoo.inspection.heatmap import Cells, cells_of, heat_map, unit_order
from mtlzoo.inspection.section import Picture, Section, Table, decimal, percent, picture_of
from mtlzoo.inspection.sharing import Sharing, open_connections, pattern_names, sharing, total
from mtlzoo.inspection.tickets import TicketSearch, read_tickets
from mtlzoo.models import MultiTaskModel
from mtlzoo.training import Run


def mask_sections(run: Run, model: MultiTaskModel) -> list[Section]:
    """Sections about the masks of a run's model.

    Args:
        run: The run.
        model: Its model.

    Returns:
        Sharing by layer, overlap (with two or more tasks), sharing by field, heat maps, and density over training.

    Raises:
        ValueError: The model has no masks.
        DataError: A file of the run is damaged.
    """
    layers = sharing(model)
    sections = [_sharing_section(layers)]
    sections += [_overlap_section(layers)] if layers[0].overlaps else []
    sections += [_field_section(field_sharing(model)), _heat_map_section(model)]
    return [*sections, _training_section(run, model), *_ticket_sections(run)]


def _sharing_section(layers: Sequence[Sharing]) -> Section:
    rows = [*layers, total(layers)]
    text = (
        "Every task uses the connections of the trunk that its mask leaves open (above 0 when the model predicts). A "
        "connection serves one task, several, or none; one that serves none is dead."
    )
    caption = (
        "How to read this: each bar is all connections of a layer. A task's own colour is what only that task uses, "
        "the dark part is shared. Where the dark part is long the tasks work on the same features, where the coloured "
        "parts are long they go separate ways. How much sharing chance alone would give is said under Overlap."
    )
    picture = picture_of(pattern_bars(rows), caption)
    return Section("Sharing by layer", text, (_sharing_table("layer", rows),), (picture,))


def _sharing_table(heading: str, rows: Sequence[Sharing]) -> Table:
    """Connections, density by task, and share of each pattern."""
    tasks = rows[0].tasks
    return Table(
        (heading, "connections", *(f"open for {task}" for task in tasks), *pattern_names(tasks)),
        tuple(
            (row.name, f"{row.connections:,}", *map(percent, row.density.values()), *map(percent, row.shares.values()))
            for row in rows
        ),
    )


def _overlap_section(layers: Sequence[Sharing]) -> Section:
    rows = [*layers, total(layers)]
    text = (
        "The overlap of two tasks is the Jaccard index of their masks: connections that both use, as a share of those "
        "that at least one uses. Beside it stands the overlap that masks of the same densities would have if they were "
        "independent of each other, layer by layer."
    )
    caption = (
        "How to read this: a dot to the right of its ring means that the tasks share more than chance would make them, "
        "a dot to the left that they avoid each other. Some overlap above chance is no sign of common features: tasks "
        "that start from the same weights tend to keep the same ones, and inputs that carry nothing are closed for "
        "all tasks alike. Nearly open masks always overlap."
    )
    table = Table(
        ("layer", "tasks", "overlap", "independent masks"),
        tuple(
            (row.name, " and ".join(o.tasks), decimal(o.jaccard, 3), decimal(o.independent, 3))
            for row in rows
            for o in row.overlaps
        ),
    )
    return Section("Overlap", text, (table,), (picture_of(overlap_dots(rows), caption),))


def _field_section(fields: Sequence[Sharing]) -> Section:
    text = (
        "The first layer's connections from each field: an embedding's entries, a number and the indicator that it was "
        "missing. Where the model has them, 'f * all' are the dot products of field f with every field."
    )
    caption = (
        "How to read this: a field whose bar is mostly dead is little used by any task, a field whose bar is mostly of "
        "one colour serves that task. An open connection may still have a small weight, so this is no ranking of "
        "importance."
    )
    return Section("Fields", text, (_sharing_table("field", fields),), (picture_of(pattern_bars(fields), caption),))


def _heat_map_section(model: MultiTaskModel) -> Section:
    tasks = task_names(model)
    text = "Where in each layer the connections of each task lie. "
    if len(tasks) > 1:
        text += (
            f"Units are ordered by how many more connections they have for {tasks[0]} than for {tasks[-1]}; the inputs "
            "of a later layer are in the order of the units before it. This order makes some drift from left to right "
            "even of masks drawn by chance."
        )
    pictures: list[Picture] = []
    rows = None
    for index, layer in enumerate(masked_layers(model)):
        masks = open_connections(layer)
        cells = cells_of(masks, rows, fields=None if index else input_fields(model))
        pictures.append(picture_of(heat_map(cells, tasks), _heat_map_caption(layer.name, cells), "png"))
        rows = unit_order(masks)
    return Section("Heat maps", text, pictures=tuple(pictures))


def _heat_map_caption(name: str, cells: Cells) -> str:
    inputs, units = cells.shape
    row = "a field" if cells.row_names else _several(cells.inputs_per_row, "input")
    column = _several(cells.units_per_column, "unit")
    reading = "A row that stands out is a field that the tasks treat differently; rows of few inputs scatter more. "
    return (
        f"{name}, {inputs:,} inputs and {units:,} units; a cell is {row} by {column}. "
        "How to read this: the colour of a cell mixes the colours of its connections by their shares, so that a pale "
        f"cell is mostly dead. {reading if cells.row_names else ''}A column of one colour is a unit of one task."
    )


def _several(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"up to {count} {what}s"


def _training_section(run: Run, model: MultiTaskModel) -> Section:
    """Density by epoch, from the run's history."""
    title, history, best = "Density over training", run.history, run.metrics["best_epoch"]
    if masked_layers(model)[0].mask == "fixed":
        return Section(title, "The masks were set before this training and do not change in it.")
    tasks = [task for task in task_names(model) if any(density_key(task) in logs for logs in history)]
    if not tasks:
        return Section(
            title, "The history of this run holds no densities: it was trained without the callback MaskDensity."
        )
    by_task = {task: [logs.get(density_key(task)) for logs in history] for task in tasks}
    caption = (
        "How to read this: a line that still falls at the end says that the masks had not settled. A task whose line "
        "is lower keeps less of the trunk: it needs less, or what a connection brings it is worth less than its price."
    )
    shown = {task: [math.nan if value is None else value for value in values] for task, values in by_task.items()}
    epochs = sorted({1, best, len(history)})
    table = Table(
        ("epoch", *tasks),
        tuple((_epoch_name(e, best), *(percent(by_task[task][e - 1]) for task in tasks)) for e in epochs),
    )
    return Section(title, _density_text(model), (table,), (picture_of(density_lines(shown, best), caption),))


def _epoch_name(epoch: int, best: int) -> str:
    return f"{epoch} (kept)" if epoch == best else str(epoch)


def _density_text(model: keras.Model) -> str:
    """What the density in the history is, for this model's masks."""
    text = "The share of connections that are open for each task, behind every epoch."
    if masked_layers(model)[0].estimator == "hard_concrete":
        text += (
            " With hard-concrete gates it is the expected share in training, where gates are drawn by chance; the "
            "sharing above counts the gates that are open when the model predicts."
        )
    return text


def _ticket_sections(run: Run) -> list[Section]:
    tickets = read_tickets(run.folder)
    if tickets is None:
        return []
    value = f"validation {'AUC' if tickets.monitor == 'auc' else 'loss'}"
    text = (
        "Each task was trained alone, pruned by the size of its weights, rewound and trained again. The mask of its "
        "best round became its ticket."
    )
    better = "higher" if tickets.monitor == "auc" else "lower"
    caption = (
        f"How to read this: from left to right the masks get sparser; {better} is better. A curve that stays level "
        "says that the task can do without these connections. Small differences may be noise of training."
    )
    rows = [row for task, search in tickets.tasks.items() for row in _ticket_rows(task, search)]
    table = Table(("task", "round", "density", value), tuple(rows))
    return [Section("Tickets", text, (table,), (picture_of(ticket_panels(tickets.tasks, value), caption),))]


def _ticket_rows(task: str, search: TicketSearch) -> list[tuple[str, ...]]:
    return [
        (task, f"{k} (chosen)" if k == search.chosen else str(k), percent(r.density), decimal(r.value, 5))
        for k, r in enumerate(search.rounds)
    ]


def numbers(model: MultiTaskModel) -> dict[str, Any]:
    """The numbers of the sections about masks, as plain data for JSON.

    Raises:
        ValueError: The model has no masks.
    """
    layers = sharing(model)
    return {
        "layers": [layer.to_dict() for layer in layers],
        "total": total(layers).to_dict(),
        "fields": [field.to_dict() for field in field_sharing(model)],
    }
