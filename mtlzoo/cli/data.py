"""The commands around data: synth, convert, prepare, inspect, check."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mtlzoo.cli.quiet import TensorFlowCommand

app = typer.Typer(no_args_is_help=True, help="Raw logs, synthetic impressions, datasets.")
command = partial(app.command, cls=TensorFlowCommand)

_PHASES = {"fit": "fitting vocabularies", "count": "counting rows", "write": "writing shards"}

LayoutOption = Annotated[str, typer.Option(help="blocks (fast) or rows (one Example per impression).")]
ShardsOption = Annotated[int, typer.Option(min=1, help="Shards per split.")]
OutOption = Annotated[Path, typer.Option("--out", help="Dataset directory to write.")]


@command()
def synth(
    out_folder: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for log, schema and truth.")],
    rows: Annotated[int, typer.Option(min=1, help="Impressions.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    preset: Annotated[str, typer.Option(help="small or ali_ccp.")] = "small",
    history_length: Annotated[int, typer.Option(min=0, help="Longest click history; 0: no such column.")] = 0,
) -> None:
    """Writes a synthetic click and conversion log (Parquet), its schema and, aside, its true probabilities."""
    from mtlzoo.cli.console import err, row_progress
    from pipelines.synthetic import SyntheticFunnel

    funnel = SyntheticFunnel(preset=preset, seed=seed, history_length=history_length)
    with row_progress("writing impressions") as progress:
        funnel.write(out_folder, rows, progress=lambda done: progress(done, rows))
    err.print(f"{rows:,} impressions in {out_folder}: impressions.parquet, schema.yaml, truth.parquet", highlight=False)


@command()
def convert(
    raw: Annotated[
        list[Path], typer.Argument(metavar="RAW...", help="CSV (.csv, .csv.gz, .csv.zst) or Parquet files.")
    ],
    out_folder: OutOption,
    schema: Annotated[Path | None, typer.Option(help="schema.yaml; with --like it may be left out.")] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Dataset whose vocabularies and statistics are used: its models then fit."),
    ] = None,
    layout: LayoutOption = "blocks",
    shards: ShardsOption = 8,
    compression: Annotated[str, typer.Option(help="none or gzip: smaller shards, for slow or remote disks.")] = "none",
) -> None:
    """Converts raw logs into a dataset directory; an interrupted conversion goes on when called again.

    With --like DIR nothing is fitted: new logs get the ids, means and bucket edges of DIR, so that what was trained on
    DIR can be evaluated and scored on them. With --schema too, labels, keys and split come from the schema.
    """
    from mtlzoo.cli.console import err, out, phase_progress
    from mtlzoo.cli.tables import split_table
    from pipelines import convert as convert_files
    from pipelines import load_schema, open_dataset
    from pipelines.raw import unused_columns

    declared = load_schema(schema) if schema is not None else None
    with phase_progress(_PHASES) as progress:
        convert_files(raw, declared, out_folder, layout, shards, progress, like, compression)  # type: ignore[arg-type]
    dataset = open_dataset(out_folder)
    for file, columns in unused_columns(raw, dataset.schema).items():
        err.print(f"note: {file}: columns that the schema does not name: {', '.join(columns)}", highlight=False)
    out.print(split_table(dataset))
    if dataset.manifest.dropped_rows:
        err.print(f"note: {dataset.manifest.dropped_rows:,} rows with a child but not its parent were dropped")


@command()
def prepare(
    name: Annotated[str, typer.Argument(help="census_income or hillstrom.")],
    raw: Annotated[Path, typer.Option("--raw", help="Directory with the publisher's files.")],
    out_folder: OutOption,
    layout: LayoutOption = "blocks",
) -> None:
    """Converts a public dataset whose files you have downloaded."""
    from mtlzoo.cli.console import out, phase_progress
    from mtlzoo.cli.tables import split_table
    from pipelines import open_dataset
    from pipelines.datasets import prepare as prepare_dataset

    with phase_progress(_PHASES) as progress:
        prepare_dataset(name, raw, out_folder, layout=layout, progress=progress)  # type: ignore[arg-type]
    out.print(split_table(open_dataset(out_folder)))


@command()
def inspect(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset directory.")]) -> None:
    """Shows splits, features and tables of a dataset, after comparing shards and vocabularies with their checksums."""
    from mtlzoo.cli.console import err, out
    from mtlzoo.cli.tables import feature_table, split_table
    from pipelines import open_dataset

    dataset = open_dataset(folder)
    with err.status("comparing checksums"):
        dataset.verify()
    out.print(split_table(dataset))
    out.print(feature_table(dataset))
    tasks = ", ".join(
        f"{t.name} ({'where ' + ' and '.join(t.given) if t.given else 'all impressions'})"
        for t in dataset.schema.targets
    )
    out.print(f"tasks: {tasks}", highlight=False, soft_wrap=True)


@command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Looks for leaks, funnel violations, constant features, drift and missing positives; exit code 1 on an error."""
    from mtlzoo.cli.console import err, out, print_json
    from mtlzoo.cli.tables import findings_table
    from pipelines import open_dataset
    from pipelines.check import check as check_dataset

    dataset = open_dataset(folder)
    with err.status("checking"):
        report = check_dataset(dataset)
    if as_json:
        print_json(report.to_dict())
    elif report.findings:
        out.print(findings_table(report))
    else:
        out.print("nothing found")
    if report.worst == "error":
        raise typer.Exit(1)
