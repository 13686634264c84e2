"""The sections of a report about the importance of features, and about gates."""

from __future__ import annotations

from typing import Any

from mtlzoo.inspection.divergence import divergences, largest_shares
from mtlzoo.inspection.figures import task_colours
from mtlzoo.inspection.gates import GateWeights
from mtlzoo.inspection.importance import MEASURE_NAMES, FeatureImportance, Importance, TaskImportance
from mtlzoo.inspection.importance_figures import MOST_FEATURES, gate_map, ranking_bars, share_dots
from mtlzoo.inspection.section import Picture, Section, Table, decimal, picture_of

_SCORES = {"auc": "AUC", "log_loss": "log loss"}


def importance_sections(importance: Importance) -> list[Section]:
    """Sections about the importance of features.

    Args:
        importance: From `permutation_importance`.

    Returns:
        The ranking for each task, and with two or more tasks how they differ.
    """
    sections = [_ranking_section(importance)]
    return [*sections, _divergence_section(importance)] if divergences(importance) else sections


def importance_numbers(importance: Importance) -> dict[str, Any]:
    """The numbers of the sections about importance, as plain data for JSON."""
    return {**importance.to_dict(), "divergence": [pair.to_dict() for pair in divergences(importance)]}


def features_by_share(importance: Importance) -> list[str]:
    """The features, those first that are the largest part of some task's importance."""
    measured = next((task.features for task in importance.tasks.values() if task.features), ())
    shares = largest_shares(importance)
    return sorted((feature.feature for feature in measured), key=lambda name: -shares.get(name, 0.0))


def _ranking_section(importance: Importance) -> Section:
    axis = MEASURE_NAMES[importance.measure]
    text = (
        f"The {axis} when one feature is permuted among the rows of the task's own population, mean of "
        f"{importance.repeats} permutations on the {importance.split} split, with a 95 % interval. The interval covers "
        "the draw of the rows and of the permutations, not the training: a model trained with another seed has "
        "importances of its own. Features that tell the same share their importance or hide each other's. "
        f"At most {importance.max_rows:,} rows of a population are looked at, positive ones first, and weighted as in "
        "the split."
    )
    lacking = [task.task.name for task in importance.tasks.values() if task.score is None]
    if lacking:
        text += f" There is none for {' and '.join(lacking)}: without rows of both classes nothing can be ranked."
    colours = task_colours(list(importance.tasks))
    pictures = tuple(
        _ranking_picture(task, colours[name], axis) for name, task in importance.tasks.items() if task.features
    )
    return Section("Feature importance", text, (_population_table(importance), _feature_table(importance)), pictures)


def _population_table(importance: Importance) -> Table:
    score = _SCORES[importance.measure]
    return Table(
        ("task", "measured on", "rows", "positives", "rows looked at", score),
        tuple(
            (
                name,
                str(task.task).removeprefix(f"{name} on "),
                f"{task.rows:,}",
                f"{task.positives:,}",
                f"{task.sampled:,}",
                decimal(task.score, 4),
            )
            for name, task in importance.tasks.items()
        ),
    )


def _feature_table(importance: Importance) -> Table:
    by_task = [{feature.feature: feature for feature in task.features} for task in importance.tasks.values()]
    return Table(
        ("feature", *importance.tasks),
        tuple((name, *(_cell(task.get(name)) for task in by_task)) for name in features_by_share(importance)),
    )


def _cell(feature: FeatureImportance | None) -> str:
    if feature is None:
        return "-"
    if feature.low is None or feature.high is None:
        return f"{feature.mean:.5f}"
    return f"{feature.mean:.5f} ({feature.low:.5f} to {feature.high:.5f})"


def _ranking_picture(task: TaskImportance, colour: str, axis: str) -> Picture:
    caption = (
        f"{task.task.name}. How to read this: the longer the bar, the more the model needs the feature for this task. "
        "Where whiskers of two features overlap widely, their order is not settled; a pale bar is not told from 0."
    )
    rest = task.ranking[MOST_FEATURES:]
    if rest:
        caption += f" Not drawn: {len(rest)} further features, none above {rest[0].mean:.5f}."
    return picture_of(ranking_bars(task, colour, axis), caption)


def _divergence_section(importance: Importance) -> Section:
    text = (
        "A feature's share is its importance as a part of the sum over all features of the task, those below 0 counted "
        "as 0. Total variation is half the sum of the differences of two tasks' shares: the part of one task's "
        "importance that would have to move to become the other's, 0 where they weigh all features alike, 1 where "
        "they use different ones. The rank correlation is Spearman's, of the importances."
    )
    table = Table(
        ("tasks", "total variation", "rank correlation"),
        tuple(
            (" and ".join(pair.tasks), decimal(pair.total_variation, 3), decimal(pair.rank_correlation, 3))
            for pair in divergences(importance)
        ),
    )
    shares = largest_shares(importance)
    if not shares:
        return Section("Divergence between tasks", text, (table,))
    caption = (
        "How to read this: a long line is a feature that matters to one task much more than to another; half the "
        "distances between the dots of two tasks, together, is their total variation. Chance moves the dots too, most "
        "those of tasks with few positives: see the whiskers above."
    )
    if len(shares) > MOST_FEATURES:
        caption += f" Not drawn: the {len(shares) - MOST_FEATURES} features with the smallest shares."
    return Section("Divergence between tasks", text, (table,), (picture_of(share_dots(importance), caption),))


def gate_section(gates: GateWeights) -> Section:
    """The section about gate weights.

    Args:
        gates: From `mean_gate_weights`.
    """
    text = (
        f"How each task weighs the modules of feature interaction: the mean weight over the rows of its own population "
        f"in the {gates.split} split, and its standard deviation from row to row. Modules are named by group and kind; "
        "the weights of one gate sum to 1."
    )
    tasks = list(gates.means)
    table = Table(
        ("module", *tasks),
        tuple((module, *(_weight(gates, task, module) for task in tasks)) for module in gates.modules),
    )
    caption = (
        "How to read this: a dark cell is a module that the task mostly listens to. A weight says how much of a "
        "module's output is mixed in, not how much the output is worth: modules differ in size and content."
    )
    return Section("Gate weights", text, (table,), (picture_of(gate_map(gates), caption),))


def _weight(gates: GateWeights, task: str, module: str) -> str:
    if module not in gates.means[task]:
        return "-"
    return f"{gates.means[task][module]:.3f} (deviation {gates.deviations[task][module]:.3f})"
