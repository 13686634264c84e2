"""The whole job on synthetic impressions: what a newcomer sees first, and what one's own log needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table

from mtlzoo.cli.console import err, out, phase_progress, row_progress
from mtlzoo.cli.tables import findings_table, number, split_table
from mtlzoo.cli.training_progress import train_with_progress
from mtlzoo.training import RunConfig, evaluate, open_run
from pipelines import Dataset, convert, load_schema, open_dataset
from pipelines.check import check
from pipelines.synthetic import SyntheticFunnel
from pipelines.synthetic_truth import KEY, best_auc_of_split

MODELS = ("single_task", "shared_bottom", "mmoe")
SERVED = "mmoe"
BATCH = 2048


def run_demo(folder: Path, rows: int, epochs: int) -> None:
    """Synthetic log → dataset → three models → table against the best reachable AUC → saved model → a prediction.

    Args:
        folder: Gets `data/raw`, `data/demo`, `runs/<model>` and `saved_models/<model>`.
        rows: Impressions to draw.
        epochs: Of each model.
    """
    raw, data = folder / "data" / "raw", folder / "data" / "demo"
    _step(1, f"{rows:,} synthetic impressions into {raw}, their true probabilities aside")
    with row_progress("writing impressions") as progress:
        SyntheticFunnel("small").write(raw, rows, progress=lambda done: progress(done, rows))

    _step(2, f"raw log to TFRecords in {data}")
    with phase_progress({"fit": "fitting vocabularies", "write": "writing shards"}) as progress:
        convert([raw / "impressions.parquet"], load_schema(raw / "schema.yaml"), data, progress=progress)
    dataset = open_dataset(data)
    out.print(split_table(dataset))

    _step(3, "leaks, funnel violations, drift")
    report = check(dataset)
    out.print(findings_table(report) if report.findings else "nothing found")

    _step(4, "training three models; the best epoch on validation stays")
    evaluations = {name: _train(name, dataset, folder / "runs" / name, epochs) for name in MODELS}

    _step(5, "test AUC of each model, and of the true probabilities")
    out.print(_comparison(evaluations, best_auc_of_split(raw, "test")))

    _step(6, f"exporting {SERVED}, and asking the export about raw impressions")
    _export_and_predict(folder, raw, dataset)


def _step(index: int, text: str) -> None:
    out.print(f"\n[bold cyan]{index}[/] [bold]{text}[/]", highlight=False)


def _train(name: str, dataset: Dataset, folder: Path, epochs: int) -> dict[str, Any]:
    err.print(f"[bold]{name}[/]")
    config = RunConfig(model=name, data=str(dataset.folder), epochs=epochs, batch_size=BATCH)
    run = train_with_progress(config, folder)
    return evaluate(run.model(), dataset, "test")


def _comparison(evaluations: dict[str, dict[str, Any]], best: dict[str, float]) -> Table:
    table = Table(
        caption="in brackets: the share of the way from 0.5 to the best reachable AUC", caption_justify="left"
    )
    table.add_column("model")
    for task in best:
        table.add_column(f"{task} AUC", justify="right")
    for name, evaluation in evaluations.items():
        aucs = {task: evaluation["tasks"][task]["auc"] for task in best}
        table.add_row(name, *(_with_share(aucs[task], best[task]) for task in best))
    table.add_section()
    table.add_row("best reachable", *(number(value) for value in best.values()))
    return table


def _with_share(auc: float | None, best: float) -> str:
    if auc is None or not best > 0.5:
        return number(auc)
    return f"{auc:.4f} ({(auc - 0.5) / (best - 0.5):.0%})"


def _export_and_predict(folder: Path, raw: Path, dataset: Dataset) -> None:
    import tensorflow as tf

    from mtlzoo.serving import export, request_of

    run = open_run(folder / "runs" / SERVED)
    target = export(run.model(), folder / "saved_models" / SERVED, dataset, metrics=run.metrics)
    out.print(f"saved model: {target}", highlight=False)
    rows = pq.ParquetFile(raw / "impressions.parquet").iter_batches(batch_size=3)
    batch = next(rows)
    predict = tf.saved_model.load(str(target)).signatures["serving_default"]
    answers = predict(**{name: tf.constant(values) for name, values in request_of(dataset.schema, batch).items()})
    truth = pq.read_table(raw / "truth.parquet", filters=pc.field(KEY).isin(batch[KEY]))
    _print_answers(batch, {task: p.numpy() for task, p in answers.items()}, truth)


def _print_answers(batch: pa.RecordBatch, answers: dict[str, np.ndarray], truth: pa.Table) -> None:
    first = {name: batch[name][0].as_py() for name in batch.schema.names if name not in ("click", "conversion")}
    out.print(f"a raw impression: {json.dumps(first, default=str)}", highlight=False)
    table = Table(title="probabilities from the saved model (true ones in brackets)", title_justify="left")
    table.add_column("impression")
    for task in answers:
        table.add_column(task, justify="right")
    true = {"click": truth["p_click"], "conversion": truth["p_conversion"], "ctcvr": truth["p_ctcvr"]}
    for row in range(batch.num_rows):
        shown = [f"{p[row]:.4f} ({true[task][row].as_py():.4f})" for task, p in answers.items()]
        table.add_row(str(batch[KEY][row].as_py()), *shown)
    out.print(table)
