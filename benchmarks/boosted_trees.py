"""Gradient-boosted trees on a dataset, a model for each task: what the multi-task models have to pass.

    python benchmarks/boosted_trees.py NAME --data DIR [--trees 3000] [--rate 0.02] [--leaves 63] [--patience 60]

LightGBM reads what a model reads: the packed ids, those of quantile buckets among them, and the packed numbers; lists
are left out. Each task is trained and tested on its own population. The ids enter in two ways:

    ordered      as numbers: in order of falling frequency, so that a split parts frequent values from rare ones
    categories   as unordered values

Trees are added until the AUC on the validation split has not grown for `--patience` trees; the test split is scored
once. Nothing is drawn at random, so there is one run. Results are kept in `benchmarks/results/boosted_trees.json`, one
entry per name, setting and machine, which a new run replaces.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import lightgbm
import numpy as np
from kept import keep_result
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from pipelines import DataError, Dataset, open_dataset

RESULTS = Path(__file__).resolve().parent / "results" / "boosted_trees.json"
CODINGS = ("ordered", "categories")


@dataclass(frozen=True)
class Rows:
    """A split in memory.

    Attributes:
        features: float32 `[n, ids + numbers]`.
        labels: By task float32 `[n]`.
        weights: By task float32 `[n]`: 0 outside of the task's population.
    """

    features: np.ndarray
    labels: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]

    def of(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of a task's population."""
        inside = self.weights[task] > 0
        return self.features[inside], self.labels[task][inside]


@dataclass(frozen=True)
class Settings:
    """Of LightGBM.

    Attributes:
        trees: At most.
        rate: Learning rate.
        leaves: Of a tree, at most.
        patience: Trees without a better AUC on validation, after which no more are added.
    """

    trees: int = 3000
    rate: float = 0.02
    leaves: int = 63
    patience: int = 60


def rows_of(dataset: Dataset, split: str) -> Rows:
    """Reads a split; ids are exact in float32 up to 2^24."""
    features: list[np.ndarray] = []
    labels: dict[str, list[np.ndarray]] = {target.name: [] for target in dataset.schema.targets}
    weights: dict[str, list[np.ndarray]] = {name: [] for name in labels}
    for inputs, of_tasks, counted in dataset.read(split, batch_size=8192):
        packed = [inputs[name].numpy().astype(np.float32) for name in ("categorical", "numeric") if name in inputs]
        features.append(np.concatenate(packed, axis=1))
        for name in labels:
            labels[name].append(of_tasks[name].numpy().ravel())
            weights[name].append(counted[name].numpy().ravel())
    joined = [{name: np.concatenate(parts) for name, parts in found.items()} for found in (labels, weights)]
    return Rows(np.concatenate(features), *joined)


def boosted(splits: dict[str, Rows], task: str, categories: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Trains trees for a task and scores them.

    Args:
        splits: `train`, `valid` and `test`.
        task: Name of the task.
        categories: Columns whose values have no order.
        settings: Of LightGBM.

    Returns:
        `trees`, and the AUC on `valid` and `test`.
    """
    parameters = {
        "objective": "binary",
        "metric": "auc",
        "learning_rate": settings.rate,
        "num_leaves": settings.leaves,
        "deterministic": True,
        "verbose": -1,
    }
    train = lightgbm.Dataset(
        *splits["train"].of(task), params=parameters, categorical_feature=list(categories) or "auto"
    )
    valid = lightgbm.Dataset(*splits["valid"].of(task), reference=train, params=parameters)
    stop = lightgbm.early_stopping(settings.patience, verbose=False)
    trees = lightgbm.train(parameters, train, settings.trees, valid_sets=[valid], callbacks=[stop])
    scored = {split: splits[split].of(task) for split in ("valid", "test")}
    aucs = {split: float(roc_auc_score(y, trees.predict(x))) for split, (x, y) in scored.items()}
    return {"trees": trees.best_iteration, **aucs}


def measure(dataset: Dataset, settings: Settings, console: Console) -> dict[str, dict[str, dict[str, Any]]]:
    """Both codings of every task, told as they come."""
    if not dataset.schema.packed_categorical:
        raise DataError(f"{dataset.folder}: has no categorical features; ordered and categories would be the same")
    splits = {split: rows_of(dataset, split) for split in ("train", "valid", "test")}
    ids = range(len(dataset.schema.packed_categorical))
    found: dict[str, dict[str, dict[str, Any]]] = {coding: {} for coding in CODINGS}
    for coding in CODINGS:
        for target in dataset.schema.targets:
            result = boosted(splits, target.name, ids if coding == "categories" else (), settings)
            found[coding][target.name] = result
            console.print(f"{coding}, {target.name}: test AUC {result['test']:.5f} after {result['trees']} trees")
    return found


def table_of(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Test AUC of every task, a row for each coding."""
    table = Table(title="LightGBM, test AUC")
    table.add_column("ids")
    for task in found[CODINGS[0]]:
        table.add_column(task, justify="right")
    for coding, tasks in found.items():
        table.add_row(coding, *(f"{result['test']:.4f}" for result in tasks.values()))
    return table


def main(words: Sequence[str] | None = None) -> int:
    """Trains, keeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True, help="dataset directory")
    defaults = Settings()
    parser.add_argument("--trees", type=int, default=defaults.trees)
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--leaves", type=int, default=defaults.leaves)
    parser.add_argument("--patience", type=int, default=defaults.patience)
    options = parser.parse_args(words)
    console = Console()
    settings = Settings(options.trees, options.rate, options.leaves, options.patience)
    try:
        found = measure(open_dataset(options.data), settings, console)
    except ValueError as error:
        console.print(f"error: {error}")
        return 1
    versions = {"lightgbm": lightgbm.__version__}
    keep_result(RESULTS, {"name": options.name, **vars(settings), **versions}, found)
    console.print(table_of(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
