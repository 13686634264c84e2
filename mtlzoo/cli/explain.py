"""`mtlzoo explain`: what a trained model learned, as a report and as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mtlzoo.inspection import FeatureImportance, GateWeights, Importance, Sharing, UpdateGates
    from mtlzoo.models import MultiTaskModel
    from mtlzoo.training import Run
    from pipelines import Dataset

_MOST_FEATURES = 15
_PHASES = {"sample": "sampling rows", "permute": "permuting features"}


def explain(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write; default: report.html in the run directory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    data: Annotated[Path | None, typer.Option(help="Dataset directory; default: the run's own.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, valid or test; default: test, or valid where test is empty.")
    ] = None,
    measure: Annotated[str, typer.Option(help="What a feature is worth: drop of auc, or rise of log_loss.")] = "auc",
    repeats: Annotated[int, typer.Option(min=1, help="Permutations of each feature.")] = 5,
    max_rows: Annotated[int, typer.Option(min=100, help="Most rows of each task's population.")] = 100_000,
    no_importance: Annotated[
        bool, typer.Option("--no-importance", help="Leave the importance of features out; masks and gates stay.")
    ] = False,
) -> None:
    """Explains a run: which features each task needs, and what its masks and gates learned; an HTML report."""
    from mtlzoo.cli.console import err, out, phase_progress, print_json
    from mtlzoo.inspection import checked_measure, checked_path, permutation_importance, write_report
    from mtlzoo.training import open_run

    run = open_run(run_folder)
    path = checked_path(out_file or run_folder / "report.html")
    model = run.model()
    dataset = _dataset(run, data, model, no_importance)
    importance = None
    if dataset is not None and not no_importance:
        with phase_progress(_PHASES) as progress:
            importance = permutation_importance(
                model, dataset, split, checked_measure(measure), repeats, max_rows, progress=progress
            )
    with err.status("drawing the report"):
        gates, updates = _gates(model, dataset, split)
        write_report(run, path, model, importance, gates, updates)
    if as_json:
        print_json({"model": run.config.model, "report": str(path), **_numbers(model, importance, gates, updates)})
        return
    for table in _tables(run.config.model, model, importance, gates, updates):
        out.print(table)
    err.print(f"report: {path}", highlight=False, soft_wrap=True)


def _dataset(run: Run, data: Path | None, model: MultiTaskModel, no_importance: bool) -> Dataset | None:
    """The dataset to explain a run's model with; `None` where nothing needs one.

    Raises:
        DataError: It is not there, or no dataset.
    """
    from mtlzoo.callbacks.mask_density import masked_layers
    from mtlzoo.inspection import has_gates, has_update_gates
    from pipelines import DataError

    gated = has_gates(model) or has_update_gates(model)
    if no_importance and not gated:
        return None
    if data is not None:
        return run.dataset(data)
    if not Path(run.config.data).is_dir():
        masks_alone = masked_layers(model) and not gated
        instead = ", or explain the masks alone with --no-importance" if masks_alone else ""
        raise DataError(f"{run.config.data}: the dataset of this run is gone; say where it is with --data DIR{instead}")
    return run.dataset()


def _gates(
    model: MultiTaskModel, dataset: Dataset | None, split: str | None
) -> tuple[GateWeights | None, UpdateGates | None]:
    """What a model's gates do; `None` for a kind that it does not have."""
    from mtlzoo.inspection import has_gates, has_update_gates, mean_gate_weights, mean_update_gates

    if dataset is None:
        return None, None
    gates = mean_gate_weights(model, dataset, split) if has_gates(model) else None
    updates = mean_update_gates(model, dataset, split) if has_update_gates(model) else None
    return gates, updates


def _numbers(
    model: MultiTaskModel, importance: Importance | None, gates: GateWeights | None, updates: UpdateGates | None
) -> dict[str, Any]:
    """What was found, as plain data."""
    from mtlzoo.callbacks.mask_density import masked_layers
    from mtlzoo.inspection import importance_numbers, numbers

    return {
        **({"importance": importance_numbers(importance)} if importance is not None else {}),
        **(numbers(model) if masked_layers(model) else {}),
        **({"gates": gates.to_dict()} if gates is not None else {}),
        **({"updates": updates.to_dict()} if updates is not None else {}),
    }


def _tables(
    name: str,
    model: MultiTaskModel,
    importance: Importance | None,
    gates: GateWeights | None,
    updates: UpdateGates | None,
) -> Iterator[Table]:
    """What was found, as tables."""
    from mtlzoo.callbacks.mask_density import masked_layers
    from mtlzoo.inspection import sharing, total

    if importance is not None:
        yield importance_table(importance, name)
    if masked_layers(model):
        layers = sharing(model)
        yield sharing_table([*layers, total(layers)], f"{name}: which tasks use the connections of the trunk")
    if gates is not None:
        yield gate_table(gates, f"{name}: mean weight of each module")
    if updates is not None:
        yield update_table(updates, f"{name}: mean update gate in each step")


def importance_table(importance: Importance, name: str) -> Table:
    """One row per feature, the 15 with the largest shares; one column per task."""
    from rich.markup import escape
    from rich.table import Table

    from mtlzoo.inspection import MEASURE_NAMES, features_by_share

    features = features_by_share(importance)
    shown = features[:_MOST_FEATURES]
    caption = "+- 95 %: draw of rows and permutations, not training"
    if len(features) > len(shown):
        caption += f"; {len(features) - len(shown)} more features in the report"
    title = f"{name}: {MEASURE_NAMES[importance.measure]} when a feature is permuted ({importance.split} split)"
    table = Table(title=escape(title), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("feature", overflow="fold")
    for task in importance.tasks:
        table.add_column(escape(task), justify="right")
    by_task = [{feature.feature: feature for feature in task.features} for task in importance.tasks.values()]
    places = 4 if importance.measure == "auc" else 6
    for feature in shown:
        table.add_row(escape(feature), *(_cell(task.get(feature), places) for task in by_task))
    return table


def _cell(feature: FeatureImportance | None, places: int) -> str:
    if feature is None:
        return "-"
    error = "" if feature.high is None else f" +- {feature.high - feature.mean:.{places}f}"
    return f"{feature.mean:.{places}f}{error}"


def gate_table(gates: GateWeights, title: str) -> Table:
    """One row per module, one column per task."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("module")
    for task in gates.means:
        table.add_column(escape(task), justify="right")
    for module in gates.modules:
        weights = (means.get(module) for means in gates.means.values())
        table.add_row(escape(module), *("-" if weight is None else f"{weight:.3f}" for weight in weights))
    return table


def update_table(updates: UpdateGates, title: str) -> Table:
    """One row per step, one column per part of the state."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column(updates.axis, overflow="fold")
    for part in updates.parts:
        table.add_column(escape(part), justify="right")
    for step, *gates in zip(updates.steps, *updates.parts.values(), strict=True):
        table.add_row(escape(step), *(f"{gate.mean:.3f}" for gate in gates))
    return table


def sharing_table(parts: list[Sharing], title: str) -> Table:
    """One column per layer; rows for the share of each pattern of use, and for each overlap beside that of chance."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("connections")
    for part in parts:
        table.add_column(escape(part.name), justify="right")
    table.add_row("number", *(f"{part.connections:,}" for part in parts))
    for pattern in parts[0].shares:
        table.add_row(escape(pattern), *(f"{part.shares[pattern]:.1%}" for part in parts))
    for overlaps in zip(*(part.overlaps for part in parts), strict=True):
        table.add_section()
        table.add_row(escape(f"overlap of {' and '.join(overlaps[0].tasks)}"), *(f"{o.jaccard:.3f}" for o in overlaps))
        table.add_row("of independent masks", *(f"{o.independent:.3f}" for o in overlaps))
    return table
