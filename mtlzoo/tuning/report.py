"""The report of a search: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mtlzoo.inspection.report import checked_path, rendered
from mtlzoo.inspection.section import Section, Table, picture_of
from mtlzoo.models.search_space import Range
from mtlzoo.tuning.figures import coordinates_figure, front_figure, history_figure, importance_figure
from mtlzoo.tuning.importance import LEAST_TRIALS, hyperparameter_importance
from mtlzoo.tuning.records import TrialRecord
from mtlzoo.tuning.search import Search


def write_search_report(search: Search, path: str | Path) -> Path:
    """Writes what a search found into one HTML file, figures inside, without scripts and network.

    Args:
        search: With at least one trial that has a result.
        path: The file to write; replaced by rename when the new one is complete.

    Returns:
        The path.

    Raises:
        ValueError: No trial has a result.
        DataError: `path` is a directory.

    Example:
        >>> write_search_report(open_search("searches/mmoe"), "report.html")
        PosixPath('report.html')

    Source: our design.
    """
    path = checked_path(path)
    search.winner()
    sections = [_settings(search), _trials(search), _history(search)]
    sections += [_front(search)] if search.objective.several else []
    sections += [_coordinates(search), *_importances(search)]
    html = rendered(f"Search: {search.config.model} for {search.objective}", sections)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)
    return path


def shown_value(record: TrialRecord, search: Search) -> str:
    """What a trial reached, in one line; why it has nothing."""
    if record.value is None or not record.has_result:
        return record.reason or record.status
    if search.objective.several:
        return record.note
    return f"{record.value:.4f}" + (f" ({record.note})" if record.note else "")


def _settings(search: Search) -> Section:
    config, space = search.config, search.hypermodel.space
    settings = {
        "model": config.model,
        "data": config.data,
        "objective": str(search.objective),
        "algorithm": config.algorithm,
        "epochs of a trial": config.epochs,
        "seed": config.seed,
        "hopeless trials": "pruned" if config.prune and not search.objective.several else "trained to the end",
        **{f"fixed {name}": value for name, value in config.fixed.items()},
    }
    dimensions = tuple(
        (
            name,
            f"{d.text(d.low)} to {d.text(d.high)}{', by order of magnitude' if d.log else ''}"
            if isinstance(d, Range)
            else ", ".join(d.texts),
        )
        for name, d in space.items()
    )
    tables = (
        Table(("setting", "value"), tuple((name, str(value)) for name, value in settings.items())),
        Table(("hyper-parameter", "searched"), dimensions),
    )
    return Section("What was searched", "All values are measured on the validation split.", tables)


def _trials(search: Search) -> Section:
    space = search.hypermodel.space
    ranked = search.ranked()
    others = [record for record in search.records.all() if not record.has_result]
    headings = ("trial", "status", "value", "epoch", "seconds", *space)
    rows = tuple(
        (
            str(record.number),
            record.status,
            shown_value(record, search),
            str(record.best_epoch or "-"),
            f"{record.seconds:.0f}",
            *(space[name].text(record.values[name]) for name in space),
        )
        for record in (*ranked, *others)
    )
    winner = search.winner()
    text = f"Best first. Trial {winner.number} is the one to train." + (
        " It is the one on the front that is nearest to the best of every measure." if search.objective.several else ""
    )
    return Section("Trials", text, (Table(headings, rows),))


def _history(search: Search) -> Section:
    figure = history_figure(search.records.all(), search.objective)
    caption = "Each dot is a trial: a pruned one was given up before its last epoch."
    return Section("History", pictures=(picture_of(figure, caption),))


def _front(search: Search) -> Section:
    numbers = [record.number for record in search.front()]
    figure = front_figure(search.ranked(), numbers, search.objective.measures)
    caption = "No trial beats one of the front in one measure without losing in another."
    return Section("Pareto front", pictures=(picture_of(figure, caption),))


def _coordinates(search: Search) -> Section:
    measure = search.objective.measures[0] if search.objective.several else None
    done = search.ranked()
    if measure is not None:
        done.sort(key=lambda record: measure.cost(record.evaluation))
    figure = coordinates_figure(done[::-1], search.hypermodel.space, str(measure or "the value"))
    caption = "Each line is a trial. Where dark lines run together, good trials agree."
    return Section("Parallel coordinates", pictures=(picture_of(figure, caption),))


def _importances(search: Search) -> list[Section]:
    """A section for the objective; for a Pareto front one for each measure."""
    done, space = search.ranked(), search.hypermodel.space
    positions = np.array([[d.position(record.values[name]) for name, d in space.items()] for record in done])
    wanted = (
        {str(m): [m.of(record.evaluation) for record in done] for m in search.objective.measures}
        if search.objective.several
        else {"the value": [float(record.value or 0.0) for record in done]}
    )
    sections = []
    for name, values in wanted.items():
        found = hyperparameter_importance(positions, values)
        title = f"What mattered for {name}"
        if found is None:
            sections.append(Section(title, f"Fewer than {LEAST_TRIALS} trials with different values say nothing."))
            continue
        caption = "Share of the variance that each explains alone, in a random forest fitted to the trials."
        sections.append(Section(title, pictures=(picture_of(importance_figure(found, list(space)), caption),)))
    return sections
