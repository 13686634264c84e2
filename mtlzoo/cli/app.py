"""The commands around models: train, evaluate, export, models, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from mtlzoo.cli.data import app as data_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Multi-task click and conversion ranking: impressions to TFRecords, training, evaluation, export.",
    epilog="`--debug` anywhere on the line shows the traceback of an error.",
)
app.add_typer(data_app, name="data")

TRAINING_SETTINGS = ("learning_rate", "patience", "monitor", "loss_weights")

DataOption = Annotated[Path, typer.Option("--data", help="Dataset directory.")]


@app.command()
def models() -> None:
    """Lists the models with their arguments."""
    from mtlzoo.cli.console import out
    from mtlzoo.cli.tables import models_table
    from mtlzoo.models import MODELS, arguments_of

    out.print(models_table(MODELS, arguments_of))


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="Name of the model; `mtlzoo models` lists them.")],
    data: DataOption,
    out_folder: Annotated[Path, typer.Option("--out", help="Run directory to write.")],
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs; training stops early.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Impressions per step.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the model, or learning_rate, patience, monitor (loss or auc), loss_weights.TASK.",
        ),
    ] = None,
) -> None:
    """Trains a model: selects on validation, stops early, writes checkpoints, logs, history and metrics."""
    from mtlzoo.cli.console import err, out
    from mtlzoo.cli.tables import evaluation_table
    from mtlzoo.training import RunConfig

    arguments, training = parse_settings(model, settings or [])
    config = validated(
        RunConfig,
        model=model,
        arguments=arguments,
        data=str(data),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        **training,
    )
    run = train_with_progress(config, out_folder)
    out.print(evaluation_table(run.metrics["valid"], f"{model} on the validation split"))
    err.print(f"run: {out_folder}", highlight=False)


@app.command()
def evaluate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    data: Annotated[Path | None, typer.Option(help="Dataset directory; default: the run's own.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluates a run: every task on its own population."""
    from mtlzoo.cli.console import out, print_json, row_progress
    from mtlzoo.cli.tables import evaluation_table
    from mtlzoo.training import evaluate as evaluate_model
    from mtlzoo.training import open_run
    from pipelines import open_dataset

    run = open_run(run_folder)
    dataset = open_dataset(data) if data is not None else run.dataset()
    dataset.rows(split)
    with row_progress(f"evaluating on {split}") as progress:
        evaluation = evaluate_model(run.model(), dataset, split, progress=progress)
    if as_json:
        print_json(evaluation)
    else:
        out.print(
            evaluation_table(evaluation, f"{run.config.model} on the {split} split ({evaluation['rows']:,} rows)")
        )


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Directory of the servable; gets a version directory.")],
    version: Annotated[int | None, typer.Option(min=1, help="Default: one more than the highest there.")] = None,
) -> None:
    """Exports a run's best model as a SavedModel for TF Serving."""
    from mtlzoo.cli.console import err, out
    from mtlzoo.serving import export as export_model
    from mtlzoo.training import open_run

    run = open_run(run_folder)
    with err.status("exporting"):
        target = export_model(run.model(), out_folder, run.dataset(), version=version, metrics=run.metrics)
    out.print(str(target), highlight=False, soft_wrap=True)


@app.command()
def demo(
    out_folder: Annotated[Path, typer.Option("--out", help="Gets data/, runs/ and saved_models/.")] = Path("."),
    rows: Annotated[int, typer.Option(min=100_000, help="Synthetic impressions.")] = 600_000,
) -> None:
    """Runs the whole job on synthetic impressions: write, convert, check, train, compare, export, predict."""
    from mtlzoo.cli.demo import run_demo

    run_demo(out_folder, rows)


def train_with_progress(config: Any, out_folder: Path) -> Any:
    """Trains with a progress bar that leaves the screen whatever happens."""
    from mtlzoo.cli.training_progress import TrainingProgress
    from mtlzoo.training import train as train_model

    progress = TrainingProgress(config.epochs)
    try:
        return train_model(config, out_folder, callbacks=[progress])
    finally:
        progress.close()


def parse_settings(model: str, settings: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`key=value` words → arguments of the model, and training settings.

    Raises:
        ValueError: No `=`, or a key that is neither; the message lists the known ones.
    """
    from mtlzoo.models import arguments_of

    defaults = arguments_of(model)
    known = [name for name in defaults if name != "name"]
    arguments: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}")
        top, _, task = key.partition(".")
        if key in known:
            value = parse_value(text)
            one_of_many = isinstance(defaults[key], tuple) and not isinstance(value, list)
            arguments[key] = [value] if one_of_many else value
        elif top == "loss_weights" and task:
            training.setdefault("loss_weights", {})[task] = parse_value(text)
        elif key in TRAINING_SETTINGS and key != "loss_weights":
            training[key] = parse_value(text)
        else:
            raise ValueError(
                f"--set: {model} has no setting {key!r}; its arguments: {', '.join(known)}; of training: "
                f"learning_rate, patience, monitor, loss_weights.TASK"
            )
    return arguments, training


def parse_value(text: str) -> Any:
    """A value as YAML reads it; `256,128` is a list, `1e-3` a number."""
    value = yaml.safe_load(f"[{text}]") if "," in text and not text.startswith("[") else yaml.safe_load(text)
    return [_number(v) for v in value] if isinstance(value, list) else _number(value)


def _number(value: Any) -> Any:
    # YAML 1.1 takes 1e-3 for text, since it lacks a point.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def validated(kind: Any, **values: Any) -> Any:
    """Builds a pydantic object; its first fault becomes one line.

    Raises:
        ValueError: What is wrong with which setting.
    """
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ValueError(f"{where}: {fault['msg']} (got {fault['input']!r})") from None
