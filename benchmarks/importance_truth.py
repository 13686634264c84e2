"""Does permutation importance rank the fields of the synthetic funnel truly? Rank correlation with the true importance.

    python benchmarks/importance_truth.py [--models mmoe shared_bottom] [--worlds 1] [--rows 2000000] [--preset small]
        [--knobs click_rate=0.15 ...] [--without user_id item_id] [--measures auc log_loss] [--repeats 5] [--epochs 5]
        [--set key=value ...] [--work DIR]

The true importance of a field for a task is its permutation importance under the world's true probabilities: a field's
ids are permuted among the rows of the task's population, the world says what the probabilities are then, and every row
counts as p of a positive and 1 - p of a negative, p its true probability. So it is the very quantity that a model's
importance estimates, with the chance of labels integrated out. The variance that a field brings into the true logit
(`world.json`) is another one: it is of the logit and not of the score, does not know populations, and has no ctcvr.

A model is trained as `mtlzoo train` trains it, and its importance measured on the test split as `mtlzoo explain` does.
Beside it stands what the true probabilities themselves reach with as many drawn labels: the best that can be expected,
since a split of 2 million impressions holds some 240 conversions to measure by.

The id of an item determines its price, brand and category. What the world ascribes to the price a model may ascribe to
the id, with the same predictions on every impression that can occur; no data tell the two apart. --without leaves
fields out of the schema that models are trained with (the world keeps them), so that the question has one answer.

Results are kept in `benchmarks/results/importance_truth.json`; what is there already is not run again. Each world is
the synthetic funnel with a seed of its own, and models are trained in it with the seed 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from accuracy import RESULTS, UNAVERAGED
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from mtlzoo.cli.settings import parse_settings, parse_value
from mtlzoo.inspection import Importance, permutation_importance
from mtlzoo.training import RunConfig, train
from mtlzoo.training.run import read_json, write_json
from pipelines import convert, save_schema
from pipelines.synthetic import SyntheticFunnel
from pipelines.synthetic_truth import LOG
from pipelines.synthetic_world import CHUNK_ROWS, Ids, sigmoid

NAME = "importance_truth"
TASKS = ("click", "conversion", "ctcvr")
TEST_SHARE = 0.1
# Behind all rows of any log: rows that no model has seen.
FIRST_CHUNK = 10_000
ALL_CHUNKS, CLICKED_CHUNKS = 8, 32
ORACLE = "true probabilities"

Values = dict[str, dict[str, float]]


class Oracle:
    """The permutation importance of the true probabilities."""

    def __init__(self, funnel: SyntheticFunnel, measure: str) -> None:
        self._world = funnel.world
        self._measure = measure

    def true_importance(self, chunks: tuple[int, int] = (ALL_CHUNKS, CLICKED_CHUNKS)) -> Values:
        """By task and field, with expected labels, on fresh rows."""
        ids, clicked = self._rows(chunks[1])
        first = chunks[0] * CHUNK_ROWS
        everything = {name: values[:first] for name, values in ids.items()}
        clicks = {name: values[clicked] for name, values in ids.items()}
        return {
            task: self._importance(task, rows, self._probabilities(rows)[task], seed=0)
            for task, rows in zip(TASKS, (everything, clicks, everything), strict=True)
        }

    def importance_by_labels(self, rows: int, seed: int) -> Values:
        """By task and field, with as many drawn labels as a test split of so many rows has."""
        ids, _ = self._rows(-(-rows // CHUNK_ROWS), first=FIRST_CHUNK + CLICKED_CHUNKS)
        ids = {name: values[:rows] for name, values in ids.items()}
        probabilities = self._probabilities(ids)
        rng = np.random.default_rng(seed)
        click, converts = (rng.random(rows) < probabilities[task] for task in ("click", "conversion"))
        found = {
            "click": self._importance("click", ids, click.astype(float), seed),
            "ctcvr": self._importance("ctcvr", ids, (click & converts).astype(float), seed),
        }
        clicked = {name: values[click] for name, values in ids.items()}
        found["conversion"] = self._importance("conversion", clicked, converts[click].astype(float), seed)
        return {task: found[task] for task in TASKS}

    def _rows(self, chunks: int, first: int = FIRST_CHUNK) -> tuple[Ids, np.ndarray]:
        drawn = [self._world.impressions(first + i) for i in range(chunks)]
        ids = {name: np.concatenate([part.ids[name] for part in drawn]) for name in drawn[0].ids}
        return ids, np.concatenate([part.click for part in drawn])

    def _probabilities(self, ids: Ids) -> dict[str, np.ndarray]:
        click, conversion = (sigmoid(logit).astype(np.float64) for logit in self._world.logits(ids))
        return {"click": click, "conversion": conversion, "ctcvr": click * conversion}

    def _importance(self, task: str, ids: Ids, positive: np.ndarray, seed: int) -> dict[str, float]:
        order = np.random.default_rng(seed).permutation(len(positive))
        before = score(self._measure, self._probabilities(ids)[task], positive)
        return {
            field: before
            - score(self._measure, self._probabilities({**ids, field: values[order]})[task], positive)
            for field, values in ids.items()
        }  # fmt: skip


def score(measure: str, chances: np.ndarray, positive: np.ndarray) -> float:
    """AUC, or minus the log loss, where row i counts `positive_i` as a positive and the rest as a negative."""
    negative = 1.0 - positive
    if measure == "log_loss":
        chances = np.clip(chances, 1e-7, 1.0 - 1e-7)
        return float(np.mean(positive * np.log(chances) + negative * np.log1p(-chances)))
    _, group = np.unique(chances, return_inverse=True)
    positives, negatives = (np.bincount(group, weights=part) for part in (positive, negative))
    return float(positives @ (np.cumsum(negatives) - negatives / 2.0) / (positives.sum() * negatives.sum()))


def agreement(found: Values, truth: Values, without: Sequence[str] = ()) -> dict[str, float]:
    """Spearman's rank correlation over the fields, by task."""
    names = [name for name in truth[TASKS[0]] if name not in without]
    return {
        task: float(spearmanr([found[task][name] for name in names], [truth[task][name] for name in names])[0])
        for task in TASKS
    }


def parse_knobs(words: Sequence[str]) -> dict[str, Any]:
    """`KNOB=VALUE` words → knobs of the synthetic funnel.

    Raises:
        ValueError: A word that is none.
    """
    parted = [word.partition("=") for word in words]
    known = [field.name for field in fields(SyntheticFunnel) if field.name != "seed"]
    for name, equals, _ in parted:
        if not equals or name not in known:
            raise ValueError(f"--knobs takes KNOB=VALUE, got {name + equals!r}; knobs: {', '.join(known)}")
    return {name: parse_value(text) for name, _, text in parted}


def dataset_of(funnel: SyntheticFunnel, options: argparse.Namespace) -> Path:
    """The converted log of a world; what is there already stays."""
    world = json.dumps([asdict(funnel), options.rows, options.without], sort_keys=True)
    folder = options.work / f"importance-{sha256(world.encode()).hexdigest()[:16]}"
    if not (folder / "manifest.json").is_file():
        raw = folder.with_name(f"{folder.name}-raw")
        funnel.write(raw, options.rows)
        schema = funnel.schema()
        kept = tuple(feature for feature in schema.features if feature.name not in options.without)
        schema = schema.model_copy(update={"features": kept})
        save_schema(schema, raw / "schema.yaml")
        convert([raw / LOG], schema, folder)
        shutil.rmtree(raw)
    return folder


def measure_model(model: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains a model in a world and measures its importances.

    Returns:
        By measure and task the score, the positives, and mean and interval of each field; the epoch that was kept.
    """
    arguments, training = parse_settings(model, options.settings)
    settings = {"batch_size": 4096, **UNAVERAGED, **training}
    config = RunConfig(model=model, arguments=arguments, data=str(data), epochs=options.epochs, seed=1, **settings)
    with tempfile.TemporaryDirectory() as place:
        run = train(config, Path(place) / "run")
        trained, dataset = run.model(), run.dataset()
        found = {
            measure: plain(permutation_importance(trained, dataset, "test", measure, options.repeats))
            for measure in options.measures
        }
        return {"measures": found, "best_epoch": run.metrics["best_epoch"]}


def plain(importance: Importance) -> dict[str, Any]:
    """What is kept of a model's importances."""
    return {
        name: {
            "score": task.score,
            "positives": task.positives,
            "features": {f.feature: {"mean": f.mean, "low": f.low, "high": f.high} for f in task.features},
        }
        for name, task in importance.tasks.items()
    }


def values_of(result: dict[str, Any], measure: str) -> Values:
    """By task and field, from a kept result."""
    tasks = result["measures"][measure]
    return {name: {f: values["mean"] for f, values in task["features"].items()} for name, task in tasks.items()}


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mmoe", "shared_bottom"])
    parser.add_argument("--worlds", type=int, default=1, help="number of worlds, with the seeds 0, 1, ...")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--knobs", nargs="*", default=[], help="KNOB=VALUE, of the synthetic funnel")
    parser.add_argument("--without", nargs="*", default=[], help="fields that models do not see")
    parser.add_argument("--measures", nargs="+", choices=["auc", "log_loss"], default=["auc", "log_loss"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--set", dest="settings", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("data/worlds"), help="where synthetic logs are put")
    options = parser.parse_args()

    console = Console()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{NAME}.json"
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    knobs = parse_knobs(options.knobs)
    for seed in range(options.worlds):
        funnel = SyntheticFunnel(seed=seed, **{"preset": options.preset, **knobs})
        world = {**knobs, "preset": funnel.preset, "seed": seed, "rows": options.rows}
        for measure in options.measures:
            truth, best = oracle_of(funnel, measure, world, results, path)
            rows.setdefault((ORACLE, measure), []).append(agreement(best, truth, options.without))
        for model in options.models:
            settings = {"without": options.without, "epochs": options.epochs, "settings": options.settings}
            key = json.dumps({"model": model, **world, **settings, "repeats": options.repeats}, sort_keys=True)
            if not set(options.measures) <= set(results.get(key, {}).get("measures", {})):
                results[key] = measure_model(model, dataset_of(funnel, options), options)
                write_json(path, results)
            for measure in options.measures:
                truth, _ = oracle_of(funnel, measure, world, results, path)
                found = agreement(values_of(results[key], measure), truth, options.without)
                rows.setdefault((model, measure), []).append(found)
                console.print(f"world {seed}, {model}, {measure}: {found}")
    console.print(table_of(rows, options.rows))


def oracle_of(
    funnel: SyntheticFunnel, measure: str, world: dict[str, Any], results: dict[str, Any], path: Path
) -> tuple[Values, Values]:
    """The true importances of a world, and what the true probabilities get with the labels of a test split."""
    key = json.dumps({"oracle": measure, **world}, sort_keys=True)
    if key not in results:
        oracle = Oracle(funnel, measure)
        test_rows = int(world["rows"] * TEST_SHARE)
        results[key] = {"truth": oracle.true_importance(), "by_labels": oracle.importance_by_labels(test_rows, 1)}
        write_json(path, results)
    return results[key]["truth"], results[key]["by_labels"]


def table_of(rows: dict[tuple[str, str], list[dict[str, float]]], impressions: int) -> Table:
    """Lowest and highest rank correlation over the worlds."""
    worlds = len(next(iter(rows.values())))
    table = Table(title=f"rank correlation with the true importance, {impressions:,} impressions, {worlds} worlds")
    for heading in ("model", "measure"):
        table.add_column(heading)
    for task in TASKS:
        table.add_column(task, justify="right")
    for (model, measure), found in rows.items():
        values = [[of_world[task] for of_world in found] for task in TASKS]
        cells = [f"{np.mean(v):.3f} ({min(v):.3f}-{max(v):.3f})" if worlds > 1 else f"{v[0]:.3f}" for v in values]
        table.add_row(model, measure, *cells)
    return table


if __name__ == "__main__":
    main()
