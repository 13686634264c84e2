"""`mtlzoo tune`: searches hyper-parameters, shows what came of it, and trains a run with the winner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mtlzoo.training import Run
    from mtlzoo.tuning import Search

_SHOWN_TRIALS = 10


def tune(
    model: Annotated[str, typer.Argument(help="Name of the model; `mtlzoo models` lists them.")],
    data: Annotated[Path, typer.Option("--data", help="Dataset directory.")],
    out_folder: Annotated[
        Path, typer.Option("--out", help="Search directory; the same command again goes on with the search in it.")
    ],
    trials: Annotated[int, typer.Option(min=1, help="Most trials, with those that the directory has.")] = 20,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="After that no trial is begun; the winner is still trained.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="TASK.METRIC on the validation split; a sum, '0.3*click.auc + 0.7*ctcvr.auc'; with conditions, "
            "'ctcvr.auc if click.auc >= 0.62'; or a Pareto front, 'click.auc, ctcvr.auc'. Default: the last task's AUC."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials that run at a time, each in a process.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a trial, and of the winner's run.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Impressions per step, where it is not searched.")] = 1024,
    search_names: Annotated[
        str | None,
        typer.Option(
            "--search",
            metavar="NAMES",
            help="What is searched, parted by commas. Default: all that the model declares, learning_rate and loss "
            "weights; on request also optimizer, batch_size and ema_momentum.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An argument or a setting to hold fixed, as in `mtlzoo train`."
        ),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="bayesian, random or hyperband.")] = "bayesian",
    seed: Annotated[int, typer.Option(min=0, help="Of the values that are tried and of every training.")] = 1,
    no_prune: Annotated[bool, typer.Option("--no-prune", help="Train hopeless trials to the end, too.")] = False,
) -> None:
    """Searches hyper-parameters on the validation split; writes a report, and trains a run with the winner."""
    from mtlzoo.cli.console import err, out
    from mtlzoo.cli.settings import parse_settings, validated
    from mtlzoo.cli.tables import evaluation_table
    from mtlzoo.tuning import ALGORITHMS, Search, SearchConfig
    from mtlzoo.tuning.names import known_name
    from mtlzoo.tuning.report import write_search_report
    from mtlzoo.tuning.search import REPORT

    arguments, training = parse_settings(model, settings or [])
    config = validated(
        SearchConfig,
        model=model,
        data=str(data),
        objective=objective,
        search=[name.strip() for name in search_names.split(",")] if search_names else None,
        fixed={**arguments, **training},
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        algorithm=known_name(algorithm, ALGORITHMS, "algorithm"),
        prune=not no_prune,
    )
    search = Search(config, out_folder)
    _run(search, trials, workers, max_minutes)
    winner = search.winner()
    report = write_search_report(search, out_folder / REPORT)
    out.print(trials_table(search))
    err.print(f"report: {report}", highlight=False, soft_wrap=True)
    run = _train_winner(search)
    title = f"{model}, trial {winner.number}, on the validation split"
    out.print(evaluation_table(run.metrics["valid"], title))
    err.print(f"run: {run.folder}", highlight=False, soft_wrap=True)


def _run(search: Search, trials: int, workers: int, max_minutes: float | None) -> None:
    from mtlzoo.cli import _Interrupted
    from mtlzoo.tuning import run_workers

    with search.exclusive(), _progress(search, trials) as update:
        if workers == 1:
            search.run(trials, max_minutes, update, is_interrupted=lambda: _Interrupted.came)
        else:
            run_workers(search, trials, workers, max_minutes, update)


@contextmanager
def _progress(search: Search, trials: int) -> Iterator[Any]:
    """A bar over the trials, and a line for each that is over; its callback looks at the records."""
    from rich.markup import escape

    from mtlzoo.cli.console import err, progress_bars
    from mtlzoo.tuning.report import shown_value

    told = {record.number for record in search.records.all() if record.is_over}
    if told:
        err.print(f"going on: {len(told)} of {trials} trials are over", highlight=False)
    with progress_bars() as bars:
        bar = bars.add_task("trials", total=trials, completed=len(told))

        def update() -> None:
            records = search.records.all()
            over = [record for record in records if record.is_over]
            for record in over:
                if record.number not in told:
                    told.add(record.number)
                    text = (
                        f"trial {record.number} {record.status}: {shown_value(record, search)}; {record.seconds:.0f} s"
                    )
                    err.print(text, highlight=False, soft_wrap=True, markup=False)
            running = ", ".join(
                f"trial {r.number} in epoch {len(r.curve) + 1} of {r.epochs}" for r in records if r.status == "running"
            )
            best = f"best {shown_value(search.winner(), search)}" if any(r.has_result for r in over) else ""
            title = "; ".join(part for part in (running or "trials", best) if part)
            bars.update(bar, completed=len(over), description=escape(title))

        update()
        yield update


def _train_winner(search: Search) -> Run:
    """The winner's run; one that is there already is left as it is."""
    from mtlzoo.cli.training_progress import train_with_progress
    from mtlzoo.training import open_run
    from mtlzoo.training.run import METRICS
    from mtlzoo.tuning.search import BEST

    config = search.run_config(search.winner())
    folder = search.folder / BEST
    if (folder / METRICS).is_file() and open_run(folder).config == config:
        return open_run(folder)
    return train_with_progress(config, folder)


def trials_table(search: Search) -> Table:
    """The best ten trials, or the whole Pareto front, with their hyper-parameters."""
    from rich.markup import escape
    from rich.table import Table

    from mtlzoo.tuning.report import shown_value

    records = search.records.all()
    counts = {status: sum(record.status == status for record in records) for status in ("finished", "pruned", "failed")}
    shown = search.front() if search.objective.several else search.ranked()[:_SHOWN_TRIALS]
    title = f"{search.config.model}: {'the front of ' if search.objective.several else ''}{search.objective}"
    caption = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    failures = search.failures()
    table = Table(
        title=escape(title),
        title_justify="left",
        caption=escape(f"{caption}: {failures}" if failures else caption),
        caption_justify="left",
    )
    table.add_column("trial", justify="right")
    table.add_column("value")
    table.add_column("hyper-parameters", overflow="fold")
    for record in shown:
        values = ", ".join(f"{n}={d.text(record.values[n])}" for n, d in search.hypermodel.space.items())
        mark = "*" if record.number == search.winner().number else ""
        table.add_row(f"{mark}{record.number}", escape(shown_value(record, search)), escape(values))
    return table
