"""What is a search worth? Every model searched with the same budget, then seeds of what it was, found and became.

    python benchmarks/tuned.py NAME --data DIR [--models dtn ncs4cvr dcrnn mmoe] [--trials 12] [--epochs 8] [--seeds 5]
        [--objective "0.5*income.auc + 0.5*never_married.auc"] [--work runs/tuned] [--smoke]
    python benchmarks/tuned.py NAME --knobs opposite_share=0.4 ... [--rows N] [--test-share 0.4] [--world 1] ...

A search is one of `mtlzoo tune`: the defaults, then Bayesian, its space the one that the model's class declares, the
learning rate, the loss weights and the batch size; at most --trials trials of --epochs epochs, pruned. Default
objective: the mean AUC of the tasks that `esmm_product` trains: click and ctcvr, or every task where there is no
funnel. All that is chosen is chosen on validation.

Then three variants are trained with seeds 101, 102, ..., of which no search has seen one, each as `mtlzoo train` does
it: up to --epochs epochs, the best of them on validation, and one evaluation on the test split.

    before      the defaults before any model was searched: batches of 4,096, no averaged weights, DTN's modules 256
                wide; the best epoch by the loss
    searched    what the search chose; the best epoch by AUC
    defaults    as they are now, after these searches; the best epoch by the loss

Without --data it is the synthetic funnel: one log, written to --work, with its best reachable AUC. All seeds share one
dataset: intervals speak of training noise, not of the sample.

Searches lie under --work/NAME/MODEL and go on where they were; what a finished one tried and chose, and every run, is
kept in `benchmarks/results/tuned_NAME.json`, and nothing that is there is done again. Ctrl-C loses the run in progress
alone. Several calls with other --models may run at a time. --smoke is one trial, one epoch and one seed, and
keeps nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from accuracy import UNAVERAGED, key_of, run_once
from evidence_runs import parse_knobs, positive, world_of
from paired import mean_interval, paired_gain
from rich.console import Console
from rich.table import Table

from mtlzoo.tasks import tasks_of
from mtlzoo.training import RunConfig
from mtlzoo.training.run import read_json
from mtlzoo.tuning import Search, SearchConfig
from mtlzoo.tuning.hypermodel import known_dimensions
from mtlzoo.tuning.records import TrialRecord
from pipelines import open_dataset
from pipelines.schema import Schema

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = ("dtn", "ncs4cvr", "dcrnn", "mmoe")
VARIANTS = ("before", "searched", "defaults")
_FIRST_SEED = 101
_BEFORE = {"batch_size": 4096, **UNAVERAGED}
_ARGUMENTS_BEFORE = {"dtn": {"interaction_units": 256}}
# Trained with row-sparse updates in any case; which of the two is no question of width or regularisation.
_NOT_SEARCHED = ("optimizer",)


@dataclass(frozen=True)
class Budget:
    """What every model gets.

    Attributes:
        trials: Of its search, at most.
        epochs: Of a trial and of a run, at most.
        seeds: Runs of each variant.
    """

    trials: int
    epochs: int
    seeds: int


def mean_auc(schema: Schema) -> str:
    """The objective: the mean AUC of the tasks that `esmm_product` trains, the same for every model."""
    trained = [task.name for task in tasks_of(schema, "esmm_product") if task.trained]
    return " + ".join(f"{1 / len(trained):.6g}*{name}.auc" for name in trained)


def search_of(model: str, data: Path, objective: str | None, budget: Budget, folder: Path) -> Search:
    """The search of a model, as far as it has come."""
    schema = open_dataset(data).schema
    searched = [name for name in known_dimensions(model, schema) if name not in _NOT_SEARCHED]
    config = SearchConfig(
        model=model,
        data=str(data),
        objective=objective or mean_auc(schema),
        search=tuple(searched),
        epochs=budget.epochs,
    )
    return Search(config, folder)


def runs_of(search: Search, values: dict[str, Any], budget: Budget) -> Iterator[tuple[str, RunConfig]]:
    """All variants, seed by seed: what is interrupted has pairs."""
    chosen = search.run_config(TrialRecord(number=1, values=values))
    defaults = RunConfig(model=search.config.model, data=search.config.data)
    arguments = _ARGUMENTS_BEFORE.get(search.config.model, {})
    before = defaults.model_copy(update={**_BEFORE, "arguments": arguments})
    for seed in range(_FIRST_SEED, _FIRST_SEED + budget.seeds):
        for variant, config in zip(VARIANTS, (before, chosen, defaults), strict=True):
            yield variant, config.model_copy(update={"seed": seed, "epochs": budget.epochs})


def kept(path: Path) -> dict[str, Any]:
    """What has been searched and run."""
    return read_json(path) if path.exists() else {}


def keep(path: Path, key: str, result: dict[str, Any]) -> None:
    """Adds a result, by rename; other calls may be adding theirs."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({**kept(path), key: result}, indent=1), encoding="utf-8")
        os.replace(temporary, path)


def searched(search: Search, budget: Budget, path: Path, console: Console) -> dict[str, Any]:
    """A finished search, kept from an earlier call or run to its end now."""
    key = f"search {search.config.model}"
    found = kept(path).get(key)
    wanted = {"objective": str(search.objective), "epochs": budget.epochs, "budget": budget.trials}
    if found is None or any(found[name] != value for name, value in wanted.items()):
        with search.exclusive():
            search.run(budget.trials, on_change=announcer(search, console))
        found = wanted | trials_of(search)
        keep(path, key, found)
    return found


def trials_of(search: Search) -> dict[str, Any]:
    """What a search chose, and every trial with its value on validation."""
    trials = [
        {"values": record.values, "status": record.status, "value": record.value, "best_epoch": record.best_epoch,
         "seconds": round(record.seconds, 1)}
        for record in search.records.all()
    ]  # fmt: skip
    return {
        "chosen": search.winner().values,
        "minutes": round(sum(trial["seconds"] for trial in trials) / 60, 1),
        "trials": trials,
    }


def aucs(runs: Sequence[dict[str, Any]], task: str) -> list[float]:
    """Test AUC of a task, per seed."""
    return [run["tasks"][task]["auc"] for run in runs]


def table_of(results: dict[str, dict[str, list[dict]]], best: dict[str, float] | None) -> Table:
    """Per model the mean AUC of all variants with 95 % intervals, and what the last two gain, paired."""
    first = next(iter(results.values()))[VARIANTS[0]]
    tasks = list(first[0]["tasks"])
    table = Table(title=f"test AUC, {len(first)} seeds, 95 % intervals")
    table.add_column("model", no_wrap=True)
    for task in tasks:
        table.add_column(task, justify="right")
    for model, of_variants in results.items():
        for variant in VARIANTS:
            intervals = [mean_interval(aucs(of_variants[variant], task)) for task in tasks]
            table.add_row(f"{model}, {variant}", *(interval.text() for interval in intervals))
        for variant in VARIANTS[1:]:
            pairs = [(aucs(of_variants[variant], task), aucs(of_variants[VARIANTS[0]], task)) for task in tasks]
            gains = [paired_gain(after, before) for after, before in pairs]
            shown = [f"{gain.interval.text('+')}, {gain.wins} of {gain.pairs}" for gain in gains]
            table.add_row(f"  gain of {variant}", *shown, end_section=variant == VARIANTS[-1])
    if best:
        table.add_row("best reachable", *(f"{best[task]:.4f}" for task in tasks))
    return table


def data_of(options: argparse.Namespace, work: Path) -> tuple[Path, dict[str, float] | None]:
    """The dataset, and of the synthetic funnel the best reachable AUCs."""
    if options.data:
        return options.data, None
    world = world_of(options, options.world, parse_knobs(options.knobs))
    folder = world.folder(work)
    world.write(folder)
    return folder / "data", read_json(folder / "best.json")


def measure(options: argparse.Namespace, budget: Budget, work: Path, path: Path, console: Console) -> None:
    """Searches and runs what is missing, and prints the table."""
    results: dict[str, dict[str, list[dict]]] = {}
    data, best = data_of(options, work)
    for model in options.models:
        search = search_of(model, data, options.objective, budget, work / model)
        found = searched(search, budget, path, console)
        console.print(f"{model}: chosen of {len(found['trials'])} trials: {found['chosen']}")
        results[model] = {variant: [] for variant in VARIANTS}
        for variant, config in runs_of(search, found["chosen"], budget):
            key = f"{variant} {key_of(config)}"
            if key not in kept(path):
                keep(path, key, run_once(config))
            run = kept(path)[key]
            results[model][variant].append(run)
            shown = {task: round(found["auc"], 4) for task, found in run["tasks"].items()}
            console.print(f"{model}, {variant}, seed {config.seed}: {shown}, best epoch {run['best_epoch']}")
    console.print(table_of(results, best))


def announcer(search: Search, console: Console) -> Callable[[], None]:
    """Prints a line whenever one more trial has a result."""
    told = len(search.ranked())

    def tell() -> None:
        nonlocal told
        done = search.ranked()
        if len(done) > told:
            told = len(done)
            best = search.objective.value(done[0].evaluation)
            console.print(f"{search.config.model}: {told} trials with a result, best so far {best:.4f}")

    return tell


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, help="dataset directory; without it the synthetic funnel")
    parser.add_argument("--knobs", nargs="*", default=[], help="KNOB=VALUE, of the synthetic funnel")
    parser.add_argument("--rows", type=positive, default=300_000, help="of the synthetic log")
    parser.add_argument("--test-share", type=float, default=0.4, help="of the synthetic log")
    parser.add_argument("--world", type=positive, default=1, help="seed of the synthetic log")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--trials", type=positive, default=12)
    parser.add_argument("--epochs", type=positive, default=8)
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--objective")
    parser.add_argument("--work", type=Path, default=Path("runs/tuned"))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(words)
    console = Console()
    try:
        if options.smoke:
            with tempfile.TemporaryDirectory() as folder:
                measure(options, Budget(1, 1, 1), Path(folder) / "work", Path(folder) / "runs.json", console)
        else:
            budget = Budget(options.trials, options.epochs, options.seeds)
            RESULTS.mkdir(exist_ok=True)
            measure(options, budget, options.work / options.name, RESULTS / f"tuned_{options.name}.json", console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return 130
    except ValueError as error:
        console.print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
