"""The report of `mtlzoo explain`: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mtlzoo.callbacks.mask_density import masked_layers
from mtlzoo.inspection.gates import GateWeights
from mtlzoo.inspection.importance import Importance
from mtlzoo.inspection.importance_sections import gate_section, importance_sections
from mtlzoo.inspection.mask_sections import mask_sections
from mtlzoo.inspection.section import Section, Table, decimal
from mtlzoo.inspection.update_sections import update_section
from mtlzoo.inspection.updates import UpdateGates
from mtlzoo.models import MultiTaskModel
from mtlzoo.training import Run
from pipelines import DataError

_TEMPLATE = "report.html.j2"
# Settings that the report words itself.
_SHOWN = {"model", "arguments", "data", "epochs", "batch_size", "seed", "learning_rate", "monitor"}


def write_report(
    run: Run,
    path: str | Path,
    model: MultiTaskModel | None = None,
    importance: Importance | None = None,
    gates: GateWeights | None = None,
    updates: UpdateGates | None = None,
) -> Path:
    """Writes what a run's model learned into one HTML file, figures inside, without scripts and network.

    Args:
        run: A finished run.
        path: The file to write; replaced by rename when the new one is complete. Its directory is made.
        model: The run's model where it is loaded already; otherwise it is loaded.
        importance: What `permutation_importance` found for it; `None` leaves these sections out.
        gates: What `mean_gate_weights` found for it; `None` leaves this section out.
        updates: What `mean_update_gates` found for it; `None` leaves this section out.

    Returns:
        The path.

    Raises:
        ValueError: There is nothing to explain: no importance, no gates of any kind, and the model has no masks.
        DataError: A file of the run is damaged, or `path` is a directory.

    Example:
        >>> run = mtlzoo.training.open_run("runs/mmoe")
        >>> importance = permutation_importance(run.model(), run.dataset(), repeats=2)
        >>> write_report(run, "report.html", importance=importance)
        PosixPath('report.html')

    Source: our design.
    """
    path = checked_path(path)
    model = model if model is not None else run.model()
    sections = importance_sections(importance) if importance is not None else []
    sections += mask_sections(run, model) if masked_layers(model) else []
    sections += [gate_section(gates)] if gates is not None else []
    sections += [update_section(updates)] if updates is not None else []
    if not sections:
        raise ValueError(f"{model.name} has nothing to explain without the importance of its features: it has no masks")
    html = rendered(f"{run.config.model}: {run.folder.name}", [training_section(run), *sections])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)
    return path


def checked_path(path: str | Path) -> Path:
    """The path of a report, if one can be written there.

    Raises:
        DataError: It is a directory.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name the file to write, {path / 'report.html'} for example")
    return path


def rendered(title: str, sections: list[Section]) -> str:
    """Sections as an HTML page; all text is escaped.

    Args:
        title: Title of the page.
        sections: In order.
    """
    environment = Environment(
        loader=PackageLoader("mtlzoo.inspection", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(_TEMPLATE).render(title=title, sections=sections)


def training_section(run: Run) -> Section:
    """What was trained, and how good it is on the validation split."""
    config, metrics = run.config, run.metrics
    settings: dict[str, Any] = {
        "model": config.model,
        "data": config.data,
        "seed": config.seed,
        "epochs": f"{len(run.history)} of at most {config.epochs}; epoch {metrics['best_epoch']} was kept",
        "chosen by": f"validation {'AUC' if config.monitor == 'auc' else 'loss'}",
        "impressions per step": f"{config.batch_size:,}",
        "learning rate": config.learning_rate,
        **{name: value for name, value in config.model_dump(exclude_defaults=True).items() if name not in _SHOWN},
        **{f"argument {name}": value for name, value in config.arguments.items()},
    }
    evaluation = metrics["valid"]["tasks"]
    tables = (
        Table(("setting", "value"), tuple((name, str(value)) for name, value in settings.items())),
        Table(
            ("task", "validation AUC", "rows", "positives"),
            tuple(
                (task, decimal(values["auc"], 4), f"{values['rows']:,}", f"{values['positives']:,}")
                for task, values in evaluation.items()
            ),
        ),
    )
    text = "Arguments that are not named have their defaults. Each task is evaluated on its own population."
    return Section("What was trained", text, tables)
