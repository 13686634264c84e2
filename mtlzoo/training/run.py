"""A run directory: how a model was trained, and what came of it.

config.json       model, arguments, data, training settings, versions
schema.yaml       the fitted schema of the dataset
model.keras       the best model, by the monitored value on the validation split
history.json      per epoch: losses, metrics, impressions per second
metrics.json      the best epoch, and the evaluation of its model on the validation split
profile.json      of `mtlzoo train --profile`: where the time of a step went
lottery.json      of NCS4CVR with mask=lottery: density and validation value of every round, the ticket chosen
checkpoints/      the last epoch's model with its optimizer, to go on from
logs/             TensorBoard
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import keras
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mtlzoo.models import MultiTaskModel
from mtlzoo.training.presets import preset_of
from pipelines import DataError, Dataset, open_dataset

CONFIG, SCHEMA, MODEL, HISTORY, METRICS = "config.json", "schema.yaml", "model.keras", "history.json", "metrics.json"
LOTTERY = "lottery.json"
# What "auto" averages with, and up to which size: there, the copy is 40 MB at most and a step some tenth longer.
AUTO_MOMENTUM, AUTO_WEIGHTS = 0.99, 10_000_000


class Lottery(BaseModel):
    """How tickets are found.

    Attributes:
        rounds: Number of prunings, at least 1. There is one training more than prunings for each task.
        final_density: Share of the trunk's connections that the last pruning leaves, in (0, 1].
        epochs: Epochs of each training.
        scope: `"global"`: all layers are pruned together; `"layer"`: each by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(default=4, ge=1)
    final_density: float = Field(default=0.2, gt=0, le=1)
    epochs: int = Field(default=1, ge=1)
    scope: Literal["global", "layer"] = "global"


class RunConfig(BaseModel):
    """Everything that decides what a training run does.

    Attributes:
        model: Name of the model in `mtlzoo.models.MODELS`.
        preset: Name of a set of settings in `mtlzoo.training.presets`; what is given besides wins over them.
        arguments: Arguments of the model's class.
        data: Dataset directory.
        features: Names of the features that the model sees; `None`: all. The others are not even parsed.
        without: Names of features that it does not see.
        epochs: Most epochs to train.
        batch_size: Impressions per step.
        seed: Seed of initial weights, order of impressions and dropout.
        optimizer: `"lazy_adam"` and `"row_sparse_adagrad"` (`mtlzoo.optimizers`) move only those rows of embedding
            tables that a batch names; `"adam"` is Keras's, which moves all rows at every step and costs as much.
        learning_rate: Of the optimizer.
        ema_momentum: Momentum of an exponential moving average of the weights, in [0, 1); validation sees the average,
            and the run keeps it (`mtlzoo.callbacks.AveragedWeights`). `None`: the weights themselves. `"auto"`: 0.99
            for up to 10 million weights outside of a distribution strategy, else `None`. The trainings that draw the
            lottery's tickets average nothing.
        loss_weights: By trained task; 1 where not given.
        alternate: Whether each batch trains the tasks one after the other, in a step each, instead of all in one; a
            weight whose gradient is 0 in a step then stays where it is (`LazyAdam(skip_zeros=True)`, so it needs
            `lazy_adam`).
        lottery: How `ncs4cvr` with `mask=lottery` finds its tickets.
        monitor: What selects the best epoch on the validation split: `"loss"` (lower is better), or `"auc"`, the mean
            over all tasks (higher is better; noisy where a task has few positives).
        patience: Epochs without a better value before training stops early.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    preset: str | None = None
    arguments: dict[str, Any] = {}
    data: str
    features: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    seed: int = Field(default=1, ge=0)
    optimizer: Literal["lazy_adam", "adam", "row_sparse_adagrad"] = "lazy_adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    ema_momentum: float | Literal["auto"] | None = "auto"
    loss_weights: dict[str, float] | None = None
    alternate: bool = False
    lottery: Lottery = Lottery()
    monitor: Literal["loss", "auc"] = "loss"
    patience: int = Field(default=2, ge=1)

    @field_validator("features", "without", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("ema_momentum", mode="before")
    @classmethod
    def _is_a_momentum(cls, given: Any) -> Any:
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if given is None or given == "auto" or (number and 0 <= given < 1):
            return given
        raise ValueError("must be a number in [0, 1), auto or null")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given.get("preset"):
            return given
        preset = preset_of(given.get("model", ""), given["preset"])
        arguments = {**preset.arguments, **given.get("arguments", {})}
        return {**preset.training, **given, "arguments": arguments}

    @model_validator(mode="after")
    def _alternation_skips_zeros(self) -> RunConfig:
        if self.alternate and self.optimizer != "lazy_adam":
            raise ValueError(f"alternate needs optimizer lazy_adam, is {self.optimizer}")
        return self


class Run:
    """A finished run directory.

    Attributes:
        folder: The directory.
        config: How it was trained.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config

    def model(self) -> MultiTaskModel:
        """The best model, compiled as it was trained.

        Raises:
            DataError: The file is missing or damaged.
        """
        path = self.folder / MODEL
        try:
            return keras.models.load_model(path)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: cannot be loaded: {str(error).splitlines()[0]}") from error

    def dataset(self, folder: str | Path | None = None) -> Dataset:
        """The dataset it was trained on, or another one, with the features that its model sees.

        Args:
            folder: Another dataset directory; `None`: the run's own.

        Raises:
            DataError: It is no dataset, or lacks a feature.
        """
        return dataset_of(self.config, folder)

    @property
    def history(self) -> list[dict[str, float]]:
        """Logs per epoch."""
        return read_json(self.folder / HISTORY)

    @property
    def metrics(self) -> dict[str, Any]:
        """`best_epoch` (from 1) and `valid`, the evaluation of its model on the validation split."""
        return read_json(self.folder / METRICS)


def dataset_of(config: RunConfig, folder: str | Path | None = None) -> Dataset:
    """The dataset of a configuration, or another one, with the features that its model sees.

    Args:
        config: Of a run.
        folder: Another dataset directory; `None`: the configuration's.

    Raises:
        DataError: It is no dataset, or lacks a feature.
    """
    dataset = open_dataset(config.data if folder is None else folder)
    if config.features is None and not config.without:
        return dataset
    return dataset.select(config.features, config.without)


def open_run(folder: str | Path) -> Run:
    """Opens a finished run.

    Args:
        folder: What `train` or `mtlzoo train` wrote.

    Raises:
        DataError: It is no finished run.

    Example:
        >>> open_run("runs/mmoe").metrics["valid"]["tasks"]["click"]["auc"]
        0.78
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such run directory")
    if not (folder / METRICS).is_file():
        raise DataError(f"{folder}: is no finished run (it has no {METRICS}); train it with `mtlzoo train`")
    try:
        config = RunConfig.model_validate(read_json(folder / CONFIG)["training"])
    except (KeyError, ValidationError) as error:
        raise DataError(f"{folder / CONFIG}: damaged: {str(error).splitlines()[0]}") from None
    return Run(folder, config)


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable: {error}") from None


def write_json(path: Path, data: Any) -> None:
    """Writes JSON by rename, so that a reader never meets half a file."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")
    os.replace(temporary, path)
