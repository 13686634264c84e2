"""The commands around models: train, evaluate, tune, score, explain, export, verify, serve, predict, models, demo."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mtlzoo.cli.data import app as data_app
from mtlzoo.cli.explain import explain
from mtlzoo.cli.export import export
from mtlzoo.cli.predict import predict
from mtlzoo.cli.quiet import TensorFlowCommand
from mtlzoo.cli.score import score
from mtlzoo.cli.serve import serve
from mtlzoo.cli.server_config import server_config
from mtlzoo.cli.tune import tune
from mtlzoo.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Multi-task click and conversion ranking: impressions to TFRecords, training, evaluation, export, serving.",
    epilog="`--debug` anywhere on the line shows the traceback of an error.",
)
app.add_typer(data_app, name="data")
command = partial(app.command, cls=TensorFlowCommand)

DataOption = Annotated[Path, typer.Option("--data", help="Dataset directory.")]


@command()
def models() -> None:
    """Lists the models with their arguments and presets."""
    from mtlzoo.cli.console import out
    from mtlzoo.cli.tables import models_table
    from mtlzoo.models import MODELS, arguments_of
    from mtlzoo.training.presets import PRESETS

    out.print(models_table(MODELS, arguments_of, PRESETS))


@command()
def train(
    model: Annotated[str, typer.Argument(help="Name of the model; `mtlzoo models` lists them.")],
    data: DataOption,
    out_folder: Annotated[Path, typer.Option("--out", help="Run directory to write.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Most epochs; training stops early. Default: the preset's, or 10.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Impressions per step. Default: the preset's, or 1024.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An argument of the model, or learning_rate, optimizer (lazy_adam, adam or row_sparse_adagrad), "
            "ema_momentum (of averaged weights; null: none), patience, monitor (loss or auc), preset, alternate, "
            "features and without (what the model sees), loss_weights.TASK, lottery.SETTING.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="First show where the time of a step goes; kept as RUN/profile.json.")
    ] = False,
) -> None:
    """Trains a model: selects on validation, stops early, writes checkpoints, logs, history and metrics."""
    from mtlzoo.cli.console import err, out
    from mtlzoo.cli.profile import show_profile
    from mtlzoo.cli.settings import parse_settings, validated
    from mtlzoo.cli.tables import evaluation_table
    from mtlzoo.cli.training_progress import train_with_progress
    from mtlzoo.training import RunConfig
    from mtlzoo.training.profile import PROFILE
    from mtlzoo.training.run import write_json

    arguments, training = parse_settings(model, settings or [])
    sizes = {"epochs": epochs, "batch_size": batch_size}
    training |= {name: size for name, size in sizes.items() if size is not None}
    config = validated(RunConfig, model=model, arguments=arguments, data=str(data), seed=seed, **training)
    found = show_profile(config) if profile else None
    run = train_with_progress(config, out_folder)
    if found is not None:
        write_json(out_folder / PROFILE, found)
    out.print(evaluation_table(run.metrics["valid"], f"{model} on the validation split"))
    err.print(f"run: {out_folder}", highlight=False)


@command()
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

    run = open_run(run_folder)
    dataset = run.dataset(data)
    dataset.rows(split)
    with row_progress(f"evaluating on {split}") as progress:
        evaluation = evaluate_model(run.model(), dataset, split, progress=progress)
    if as_json:
        print_json(evaluation)
    else:
        out.print(
            evaluation_table(evaluation, f"{run.config.model} on the {split} split ({evaluation['rows']:,} rows)")
        )


command()(tune)
command()(score)
command()(explain)
command()(export)
command()(verify)
command()(serve)
command()(predict)
command(name="server-config")(server_config)


@command()
def demo(
    out_folder: Annotated[Path, typer.Option("--out", help="Gets data/, runs/ and saved_models/.")] = Path("."),
    rows: Annotated[int, typer.Option(min=100_000, help="Synthetic impressions.")] = 600_000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each model.")] = 4,
) -> None:
    """Runs the whole job on synthetic impressions: write, convert, check, train, compare, export, predict."""
    from mtlzoo.cli.demo import run_demo

    run_demo(out_folder, rows, epochs)
