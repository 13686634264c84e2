"""A search directory: trials that can be interrupted and gone on with, by one process or several, and their winner.

search.json       what is searched, on which data, for which objective
state.json        the oracle's: which values were tried, with which results
trials/           a record of each trial
keras_tuner/      files of KerasTuner's that it writes and nobody reads
logs/             what workers printed
lock              held by the process that searches
report.html       table and figures (`mtlzoo tune`)
best/             a run trained with the winner (`mtlzoo tune`)
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import keras_tuner
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtlzoo.training import RunConfig
from mtlzoo.training.run import read_json, write_json
from mtlzoo.training.train import check_trainable
from mtlzoo.tuning.hypermodel import FIXED_DATA, hypermodel
from mtlzoo.tuning.objectives import parse_objective
from mtlzoo.tuning.oracles import make_oracle
from mtlzoo.tuning.pareto import front, middle
from mtlzoo.tuning.records import Records, TrialRecord
from mtlzoo.tuning.tuner import MultiTaskTuner
from pipelines import DataError, open_dataset

SEARCH, STATE, TRIALS, BEST, REPORT, LOGS = "search.json", "state.json", "trials", "best", "report.html", "logs"
LOCK = "lock"


class SearchConfig(BaseModel):
    """Everything that decides what a search tries; how long it goes on is no part of it.

    Attributes:
        model: Name of the model in `mtlzoo.models.MODELS`.
        data: Dataset directory.
        objective: What it is after, as `mtlzoo.tuning.parse_objective` reads it; `None`: the AUC of the last task.
        search: Names of what is searched; `None`: see `mtlzoo.tuning.hypermodel`.
        fixed: Arguments and settings that are not searched; also `features` and `without`, what the model sees.
        epochs: Epochs of a trial.
        batch_size: Impressions per step, where it is not searched.
        seed: Of the values that are tried, and of every training.
        algorithm: `"bayesian"`, `"random"` or `"hyperband"`.
        prune: Whether hopeless trials are given up; not with hyperband, which prunes by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    data: str
    objective: str | None = None
    search: tuple[str, ...] | None = None
    fixed: dict[str, Any] = {}
    epochs: int = Field(default=2, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    seed: int = Field(default=1, ge=0)
    algorithm: Literal["bayesian", "random", "hyperband"] = "bayesian"
    prune: bool = True


class Search:
    """A search and its directory.

    Args:
        config: What is searched.
        folder: The directory; made where it is not there.

    Attributes:
        config: What is searched.
        folder: The directory.
        dataset: With the features that the model sees.
        objective: What it is after.
        hypermodel: What is built.
        records: Of the trials.

    Raises:
        ValueError: An unknown model, hyper-parameter, setting, task or metric; the message lists the known ones.
        DataError: The dataset is unusable, or the directory is that of another search, or of something else; nothing
            there was touched.

    Example:
        >>> config = SearchConfig(model="mmoe", data="data/demo", objective="ctcvr.auc", epochs=1)
        >>> search = Search(config, "searches/mmoe")
        >>> search.run(trials=20)
        >>> search.winner().values["learning_rate"]
        0.002114

    Source: our design.
    """

    def __init__(self, config: SearchConfig, folder: str | Path) -> None:
        self.config = config
        self.folder = Path(folder)
        dataset = open_dataset(config.data)
        features, without = (config.fixed.get(name) for name in FIXED_DATA)
        self.dataset = dataset.select(features, without or ()) if features or without else dataset
        check_trainable(self.dataset)
        schema = self.dataset.schema
        self.hypermodel = hypermodel(config.model, schema, config.search, config.fixed)
        self.objective = parse_objective(config.objective or f"{schema.targets[-1].name}.auc", schema)
        if schema.keys.group is None and any(measure.metric == "gauc" for measure in self.objective.measures):
            raise ValueError("the objective names gauc, but the schema has no group key; take auc")
        self._claim()
        self.records = Records(self.folder / TRIALS)

    def run(
        self,
        trials: int,
        max_minutes: float | None = None,
        on_change: Callable[[], None] = lambda: None,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs trials in this process, behind those that the directory has.

        Args:
            trials: Most trials, with those that the directory has.
            max_minutes: After that no trial is begun.
            on_change: Called whenever a record changed.
            is_interrupted: See `MultiTaskTuner`.
        """
        space = keras_tuner.HyperParameters()
        self.hypermodel.declare_hyperparameters(space)
        config = self.config
        oracle = make_oracle(
            config.algorithm,
            self.objective,
            space,
            self.folder / STATE,
            trials,
            config.epochs,
            config.seed,
            max_minutes,
        )
        prunes = config.prune and config.algorithm != "hyperband"
        tuner = MultiTaskTuner(
            oracle, self.hypermodel, self.objective, self.records, self.folder, prunes, on_change, is_interrupted
        )
        tuner.search(self.dataset, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other processes from searching in the directory meanwhile.

        Raises:
            DataError: Another one does.
        """
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"{self.folder}: another process is searching there; wait for it, or end it") from None
            yield

    def ranked(self) -> list[TrialRecord]:
        """The trials with a result, best first: by the objective; for a Pareto front, that of the front first."""
        done = [record for record in self.records.all() if record.has_result]
        if self.objective.several:
            on_front = {record.number for record in self.front()}
            return sorted(done, key=lambda record: (record.number not in on_front, record.number))
        return sorted(done, key=lambda record: self.objective.cost(record.evaluation))

    def front(self) -> list[TrialRecord]:
        """The trials with a result that no other beats in one measure without losing in another."""
        done = [record for record in self.records.all() if record.has_result]
        return [record for record, kept in zip(done, front(self._costs(done)), strict=True) if kept] if done else []

    def winner(self) -> TrialRecord:
        """The best trial; of a Pareto front, the one nearest to the best of every measure.

        Raises:
            ValueError: There is none; the message has the reasons of those that failed.
        """
        ranked = self.ranked()
        if not ranked:
            raise ValueError(f"{self.folder}: no trial has a result: {self.failures() or 'none was begun'}")
        if not self.objective.several:
            return ranked[0]
        best = self.front()
        return best[middle(self._costs(best))]

    def failures(self) -> str:
        """The reasons of trials that failed, each with how often it was met."""
        reasons = [record.reason for record in self.records.all() if record.status == "failed"]
        return "; ".join(f"{reasons.count(reason)} x {reason}" for reason in dict.fromkeys(reasons))

    def run_config(self, record: TrialRecord) -> RunConfig:
        """How to train a run with the values of a trial, as long as a trial is trained, and with its seed."""
        config = self.config
        monitor = "auc" if self.objective.measures[0].metric in ("auc", "gauc") else "loss"
        settings = {
            "data": config.data,
            "epochs": max(record.epochs, config.epochs),
            "seed": config.seed,
            **({} if "monitor" in config.fixed else {"monitor": monitor}),
            **({} if {"batch_size"} & {*config.fixed, *record.values} else {"batch_size": config.batch_size}),
        }
        return self.hypermodel.config(record.values, **settings)

    def _costs(self, records: list[TrialRecord]) -> np.ndarray:
        return np.array([[m.cost(record.evaluation) for m in self.objective.measures] for record in records])

    def _description(self) -> dict[str, Any]:
        """What must be the same for a search to go on, as the user knows it."""
        plain = self.config.model_dump(mode="json")
        rows = {split: self.dataset.rows(split) for split in ("train", "valid")}
        return {
            **plain,
            "objective": str(self.objective),
            "search": list(self.hypermodel.space),
            **{f"values of {name}": str(dimension) for name, dimension in self.hypermodel.space.items()},
            "schema": self.dataset.schema.digest(),
            "rows": rows,
        }

    def _claim(self) -> None:
        """Takes the directory for this search.

        Raises:
            DataError: It belongs to another one, or to something else.
        """
        path, wanted = self.folder / SEARCH, self._description()
        found = read_json(path) if path.exists() else None
        if found is not None:
            differing = [name for name in wanted if name != "data" and found.get(name) != wanted[name]]
            if differing:
                # Values of what is searched here alone say nothing new: `search` differs, too.
                shared = [name for name in differing if name in found] or differing
                told = "; ".join(f"{name} is {found.get(name)!r} there and {wanted[name]!r} here" for name in shared)
                raise DataError(
                    f"{self.folder}: is the directory of another search: {told}. Choose another directory with --out, "
                    "or repeat the command that began that search"
                )
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise DataError(
                f"{self.folder}: exists and is no search directory; choose another one, nothing there was touched"
            )
        if found != wanted:  # new, or the dataset lies elsewhere now
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, wanted)


def open_search(folder: str | Path) -> Search:
    """Opens a search directory.

    Args:
        folder: What `Search` or `mtlzoo tune` made.

    Raises:
        DataError: It is no search directory, or its data has changed or is gone.

    Example:
        >>> open_search("searches/mmoe").winner().value
        0.81

    Source: our design.
    """
    folder = Path(folder)
    if not (folder / SEARCH).is_file():
        raise DataError(f"{folder}: is no search directory (it has no {SEARCH}); make one with `mtlzoo tune`")
    kept = read_json(folder / SEARCH)
    try:
        config = SearchConfig.model_validate({name: kept[name] for name in SearchConfig.model_fields})
    except (KeyError, ValidationError) as error:
        raise DataError(f"{folder / SEARCH}: damaged: {str(error).splitlines()[0]}") from None
    return Search(config, folder)
