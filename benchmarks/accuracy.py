"""Test AUC of models over seeds, on a converted dataset; resumable, results written as they come.

    python benchmarks/accuracy.py NAME --data DIR --models mmoe shared_bottom --seeds 3 [--set key=value ...]
                                  [--first-seed 1] [--epochs N] [--batch-size N] [--truth RAW_DIR]

Every run is a training run as `mtlzoo train` makes it (selection on validation), then one evaluation on the test split.
With --truth (the directory of a synthetic log) the best reachable AUC and the share of the way to it are shown.
Results are kept in `benchmarks/results/NAME.json`; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from rich.console import Console
from rich.table import Table

from mtlzoo.cli.settings import parse_settings
from mtlzoo.training import RunConfig, evaluate, train
from pipelines.synthetic_truth import best_auc_of_split

RESULTS = Path(__file__).parent / "results"
# The published tables were measured without averages; --set ema_momentum=auto is what `mtlzoo train` does.
UNAVERAGED = {"ema_momentum": None}


def key_of(config: RunConfig) -> str:
    """What identifies a run: all its settings but the place of its data, and batch and averaging in any case.

    (These two had other defaults once.)
    """
    settings = config.model_dump(mode="json", exclude={"data"}, exclude_defaults=True)
    always = {"seed": config.seed, "batch_size": config.batch_size, "ema_momentum": config.ema_momentum}
    return json.dumps({**always, **settings}, sort_keys=True)


def run_once(config: RunConfig) -> dict:
    """Trains and evaluates in a temporary directory."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(config, Path(folder) / "run")
        evaluation = evaluate(run.model(), run.dataset(), "test")
        return {
            "tasks": evaluation["tasks"],
            "best_epoch": run.metrics["best_epoch"],
            "impressions_per_second": run.history[-1]["impressions_per_second"],
        }


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["single_task", "shared_bottom", "mmoe"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--set", dest="settings", nargs="*", default=[])
    parser.add_argument("--truth", type=Path)
    arguments = parser.parse_args()

    console = Console()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{arguments.name}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    rows: dict[str, list[dict]] = {}
    for model in arguments.models:
        model_arguments, training = parse_settings(model, arguments.settings)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            config = RunConfig(
                model=model, arguments=model_arguments, data=arguments.data, epochs=arguments.epochs,
                batch_size=arguments.batch_size, seed=seed, **{**UNAVERAGED, **training},
            )  # fmt: skip
            key = key_of(config)
            if key not in results:
                results[key] = run_once(config)
                path.write_text(json.dumps(results, indent=1))
            rows.setdefault(model, []).append(results[key])
            shown = {task: round(values["auc"], 4) for task, values in results[key]["tasks"].items()}
            console.print(f"{model} seed {seed}: {shown}, best epoch {results[key]['best_epoch']}")
    console.print(table_of(rows, best_auc_of_split(arguments.truth) if arguments.truth else None))


def table_of(rows: dict[str, list[dict]], best: dict[str, float] | None) -> Table:
    """Mean and range over seeds."""
    tasks = list(next(iter(rows.values()))[0]["tasks"])
    table = Table(title="test AUC: mean (lowest-highest seed)")
    table.add_column("model")
    for task in tasks:
        table.add_column(task, justify="right")
    for model, runs in rows.items():
        cells = []
        for task in tasks:
            values = [run["tasks"][task]["auc"] for run in runs]
            mean = statistics.mean(values)
            share = f", {(mean - 0.5) / (best[task] - 0.5):.1%} of the way" if best else ""
            cells.append(f"{mean:.4f} ({min(values):.4f}-{max(values):.4f}){share}")
        table.add_row(model, *cells)
    if best:
        table.add_row("best reachable", *(f"{best[task]:.4f}" for task in tasks))
    return table


if __name__ == "__main__":
    main()
