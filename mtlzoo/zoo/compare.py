"""Whether models that were built anew are as good as those that were there."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from mtlzoo.cli.tables import METRIC_HEADINGS

# The same machine and versions give the same numbers. Others add up in another order, and training drifts apart from
# there: docs/zoo.md has what was measured. AUCs differ by a number, the others by a share of themselves.
TOLERANCES = {
    "auc": {"click": 0.003, "conversion": 0.03, "ctcvr": 0.015},
    "log_loss": {"click": 0.005, "conversion": 0.03, "ctcvr": 0.02},
    "calibration": {"click": 0.1, "conversion": 0.25, "ctcvr": 0.25},
}
_RELATIVE = ("log_loss", "calibration")


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How far each metric of each task is off, in units of its tolerance: past 1 it is another model.

        off = |new - old| / tolerance          AUC
        off = |new / old - 1| / tolerance      log loss, calibration

    Args:
        old: An evaluation, of `mtlzoo.training.evaluate`.
        new: Another one.

    Returns:
        By measure and task; infinite where only one of the two has a value, or the old one lacks the task.

    Example:
        >>> old, new = ({"tasks": {"click": {"auc": auc, "log_loss": 0.2, "calibration": 1.0}}} for auc in (0.7, 0.706))
        >>> {measure: round(of["click"], 6) for measure, of in differences(old, new).items()}
        {'auc': 2.0, 'log_loss': 0.0, 'calibration': 0.0}

    Source: our design.
    """
    return {
        measure: {
            task: _off(measure, task, old["tasks"].get(task, {}).get(measure), values[measure])
            for task, values in new["tasks"].items()
        }
        for measure in TOLERANCES
    }


def _off(measure: str, task: str, old: float | None, new: float | None) -> float:
    if old == new:
        return 0.0
    if old is None or new is None:
        return float("inf")
    off = abs(new - old) / (abs(old) or 1.0) if measure in _RELATIVE else abs(new - old)
    # A task of another name is as rare as conversion, for all that is known.
    return off / TOLERANCES[measure].get(task, TOLERANCES[measure]["conversion"])


def verdict(old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    """`"new"`, `"identical"`, `"same"` (all metrics within their tolerance) or `"different"`.

    Args:
        old: The evaluation of the model that was there; `None`: there was none.
        new: That of the one that was built.
    """
    if old is None:
        return "new"
    worst = max(off for tasks in differences(old, new).values() for off in tasks.values())
    return "identical" if worst == 0.0 else "same" if worst <= 1.0 else "different"


def comparison_table(results: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]]) -> Table:
    """One row per model and measure: old and new value of each task, and the verdict.

    Args:
        results: By model, its old and its new evaluation on the test split.
    """
    table = Table(title="old -> new, on the test split", title_justify="left")
    tasks = list(dict.fromkeys(task for _, new in results.values() for task in new["tasks"]))
    for heading in ("model", "measure", *tasks, "metrics are"):
        table.add_column(escape(heading), justify="right" if heading in tasks else "left")
    for name, (old, new) in results.items():
        found = verdict(old, new)
        for place, measure in enumerate(TOLERANCES):
            cells = [_cell(old, new, measure, task) for task in tasks]
            table.add_row(escape(name) if not place else "", METRIC_HEADINGS[measure], *cells, "" if place else found)
        table.add_section()
    return table


def _cell(old: dict[str, Any] | None, new: dict[str, Any], measure: str, task: str) -> str:
    after = _shown(new["tasks"].get(task, {}).get(measure))
    if old is None:
        return after
    before = _shown(old["tasks"].get(task, {}).get(measure))
    past = old["tasks"].get(task) and differences(old, new)[measure].get(task, 0.0) > 1.0
    text = f"{before} -> {after}"
    return f"[bold red]{text}[/]" if past else text


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"
