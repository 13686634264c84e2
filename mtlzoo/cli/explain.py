"""`mtlzoo explain`: what a trained model learned, as a report and as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mtlzoo.inspection import Sharing


def explain(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a model with masks.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write; default: report.html in the run directory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Explains a run: which connections serve which task, as an HTML report with figures."""
    from mtlzoo.cli.console import err, out, print_json
    from mtlzoo.inspection import numbers, sharing, total, write_report
    from mtlzoo.training import open_run

    run = open_run(run_folder)
    with err.status("drawing the report"):
        model = run.model()
        layers = sharing(model)
        path = write_report(run, out_file or run_folder / "report.html", model)
    if as_json:
        print_json({"model": run.config.model, "report": str(path), **numbers(model)})
        return
    out.print(
        sharing_table([*layers, total(layers)], f"{run.config.model}: which tasks use the connections of the trunk")
    )
    err.print(f"report: {path}", highlight=False, soft_wrap=True)


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
