"""Trains a model of the zoo on a dataset into a run directory: selects on validation, stops early, can go on.

The run is made in `<RUN>.partial` and takes the place of RUN by rename, so an interruption leaves an older run whole.
The same call again goes on behind the last finished epoch, and ends where an uninterrupted run would have ended: every
epoch's order of impressions and its dropout follow from the seed and the epoch alone.
"""

from __future__ import annotations

import importlib.metadata
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
from pydantic import BaseModel

from mtlzoo import backend, models
from mtlzoo.callbacks import AveragedWeights, MaskDensity, Throughput
from mtlzoo.models import NCS4CVR, MultiTaskModel
from mtlzoo.optimizers import LazyAdam, RowSparseAdagrad
from mtlzoo.training.evaluate import evaluate
from mtlzoo.training.lottery import find_tickets
from mtlzoo.training.run import (
    AUTO_MOMENTUM,
    AUTO_WEIGHTS,
    CONFIG,
    HISTORY,
    LOTTERY,
    METRICS,
    MODEL,
    SCHEMA,
    Lottery,
    Run,
    RunConfig,
    dataset_of,
    open_run,
    read_json,
    write_json,
)
from mtlzoo.training.seeds import epoch_seed, seed_dropout
from pipelines import DataError, Dataset, alternate_tasks, save_schema
from pipelines.replace import put_back, replace_directory

_OPTIMIZERS = {"adam": keras.optimizers.Adam, "lazy_adam": LazyAdam, "row_sparse_adagrad": RowSparseAdagrad}
_STATE = "state.json"
_CHECKPOINTS = "checkpoints"
_TICKETS = "tickets"


class _State(BaseModel):
    """Where a run stands behind its last finished epoch; epochs count from 1, 0 is none."""

    epoch: int = 0
    best: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, float | None]] = []

    def after(self, logs: dict[str, float], monitor: str) -> _State:
        """The state one epoch on."""
        value = monitored(logs, monitor)
        better = self.best is None or (value > self.best if monitor == "auc" else value < self.best)
        return _State(
            epoch=self.epoch + 1,
            best=value if better else self.best,
            best_epoch=self.epoch + 1 if better else self.best_epoch,
            history=[*self.history, {key: _finite(value) for key, value in logs.items()}],
        )

    def patience_spent(self, patience: int) -> bool:
        """Whether the best epoch lies `patience` epochs back."""
        return self.best_epoch is not None and self.epoch - self.best_epoch >= patience


def train(
    config: RunConfig,
    out: str | Path,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    announce: Callable[[str], None] = lambda text: None,
) -> Run:
    """Trains a model.

    Args:
        config: What to train, on what, how long.
        out: The run directory. An older run there is replaced when the new one is complete.
        callbacks: Further Keras callbacks; each epoch is one `fit`.
        announce: Called with a line of text before every training of a ticket (`ncs4cvr` with `mask=lottery`), and with
            an empty one behind the last.

    Returns:
        The finished run.

    Raises:
        DataError: The dataset is unusable, or `out` exists and is no run.
        ValueError: Unknown model or argument.
        FloatingPointError: The loss became NaN or infinite.

    Example:
        >>> run = train(RunConfig(model="mmoe", data="data/demo", epochs=2), "runs/mmoe")
        >>> run.metrics["valid"]["tasks"]["ctcvr"]["auc"]
        0.81
    """
    out = Path(out)
    put_back(out)
    if out.exists() and not (out / METRICS).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is no finished run; choose another directory, nothing there was touched")
    dataset = dataset_of(config)
    check_trainable(dataset)
    keras.utils.set_random_seed(config.seed)
    model = models.create(config.model, dataset.schema, **config.arguments)

    draws_tickets = isinstance(model, NCS4CVR) and model.mask == "lottery"
    if config.lottery != Lottery() and not draws_tickets:
        raise ValueError(f"the lottery settings are for ncs4cvr with mask=lottery; this is {config.model}")

    work = out.with_name(out.name + ".partial")
    state = _open_work(work, config, dataset)
    if state.epoch:
        model = keras.models.load_model(_checkpoint(work, state.epoch))
    else:
        compile_as_configured(model, config)
    try:
        with dataset.damaged_shards_named("train", "valid"):
            if draws_tickets and not state.epoch:
                _draw_tickets(model, dataset, config, work, callbacks, announce)
            state = _fit(model, dataset, config, work, state, callbacks)
    except BaseException:
        if not _can_go_on(work):
            shutil.rmtree(work)
        raise

    del model  # two sets of tables need twice the memory
    best = keras.models.load_model(work / MODEL)
    shutil.rmtree(work / _TICKETS, ignore_errors=True)
    write_json(work / METRICS, {"best_epoch": state.best_epoch, "valid": evaluate(best, dataset, "valid")})
    replace_directory(work, out)
    return open_run(out)


def compile_as_configured(model: MultiTaskModel, config: RunConfig, weighted_metrics: Any = "auto") -> None:
    """Compiles a model with the optimizer and the loss weights of a configuration, and with the metrics given."""
    # What a task alone does not use must not coast on in another task's step.
    own = {"skip_zeros": True} if config.alternate else {}
    optimizer = _OPTIMIZERS[config.optimizer](config.learning_rate, **own)
    model.compile(optimizer=optimizer, loss_weights=config.loss_weights, weighted_metrics=weighted_metrics)


def averaging_of(config: RunConfig, model: MultiTaskModel) -> list[AveragedWeights]:
    """The callback that averages weights as configured, alone in a list; nothing where none are averaged."""
    momentum = config.ema_momentum
    if momentum == "auto":
        small = model.count_params() <= AUTO_WEIGHTS and not backend.is_distributed(model)
        momentum = AUTO_MOMENTUM if small else None
    return [] if momentum is None else [AveragedWeights(momentum)]


def _draw_tickets(
    model: NCS4CVR,
    dataset: Dataset,
    config: RunConfig,
    work: Path,
    callbacks: Sequence[keras.callbacks.Callback],
    announce: Callable[[str], None],
) -> None:
    """Gives the model its tickets and keeps what was tried."""
    tickets = find_tickets(
        model,
        lambda seed: dataset.read("train", config.batch_size, shuffle=True, seed=seed),
        dataset.read("valid", config.batch_size),
        config.lottery,
        monitor=config.monitor,
        folder=work / _TICKETS,
        seed=config.seed,
        callbacks=callbacks,
        announce=announce,
    )
    announce("")
    tasks = {t.label: {"rounds": [asdict(r) for r in t.rounds], "chosen": t.chosen} for t in tickets}
    write_json(work / LOTTERY, {"monitor": config.monitor, "tasks": tasks})


def check_trainable(dataset: Dataset) -> None:
    """Refuses a dataset on which a task cannot be learned or selected.

    Raises:
        DataError: A split lacks rows, or a label has no positives in it.
    """
    for split in ("train", "valid"):
        if dataset.rows(split) == 0:
            raise DataError(
                f"{dataset.folder}: the split {split!r} has no rows; change the schema's split and convert again"
            )
        for label, positives in dataset.manifest.positives(split).items():
            if positives == 0:
                raise DataError(
                    f"{dataset.folder}: the label {label!r} has no positives in the split {split!r} of "
                    f"{dataset.rows(split)} rows; it cannot be {'learned' if split == 'train' else 'selected on'}"
                )


def monitored(logs: dict[str, float], monitor: str) -> float:
    """The value that selects the best epoch: validation loss, or the mean of all tasks' validation AUCs.

    An AUC that does not exist (a task without positives) is left out of the mean.
    """
    if monitor == "loss":
        return logs["val_loss"]
    aucs = [value for key, value in logs.items() if key.startswith("val_") and key.endswith("auc")]
    known = [value for value in aucs if not math.isnan(value)]
    return sum(known) / len(known)


def _open_work(work: Path, config: RunConfig, dataset: Dataset) -> _State:
    """An interrupted run of the same configuration goes on; anything else in its place is begun anew."""
    description = {
        "training": config.model_dump(mode="json"),
        "dataset": {"schema": dataset.schema.digest(), "rows": {s: dataset.rows(s) for s in dataset.manifest.splits}},
        "versions": {name: importlib.metadata.version(name) for name in ("mtlzoo", "keras", "tensorflow")},
    }
    if _can_go_on(work) and read_json(work / CONFIG) == description:
        return _State.model_validate(read_json(work / _STATE)) if (work / _STATE).is_file() else _State()
    shutil.rmtree(work, ignore_errors=True)
    (work / _CHECKPOINTS).mkdir(parents=True)
    write_json(work / CONFIG, description)
    save_schema(dataset.schema, work / SCHEMA)
    return _State()


def _can_go_on(work: Path) -> bool:
    """Whether an epoch, or a training of a ticket, was finished."""
    return (work / _STATE).is_file() or (work / _TICKETS).is_dir()


def _fit(
    model: MultiTaskModel,
    dataset: Dataset,
    config: RunConfig,
    work: Path,
    state: _State,
    callbacks: Sequence[keras.callbacks.Callback],
) -> _State:
    valid = dataset.read("valid", batch_size=config.batch_size)
    averaged = averaging_of(config, model)
    if state.epoch:
        for average in averaged:
            average.restore(_own_weights(work, state.epoch))
    board = keras.callbacks.TensorBoard(work / "logs", write_graph=False, profile_batch=0)
    trained = [task.name for task in model.tasks if task.trained]
    impressions_per_step = max(1, config.batch_size // len(trained)) if config.alternate else config.batch_size
    while state.epoch < config.epochs and not state.patience_spent(config.patience):
        epoch = state.epoch
        seed_dropout(model, epoch_seed(config.seed, epoch))
        batches = dataset.read("train", config.batch_size, shuffle=True, seed=epoch_seed(config.seed, epoch))
        history = model.fit(
            alternate_tasks(batches, trained) if config.alternate else batches,
            validation_data=valid,
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=[*averaged, Throughput(impressions_per_step), MaskDensity(), board, *callbacks],
            verbose=0,
        )
        logs = {key: float(values[-1]) for key, values in history.history.items()}
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"epoch {epoch + 1}: the training loss is {logs['loss']}; lower the learning rate "
                f"(now {config.learning_rate}) or look for extreme numeric features with `mtlzoo data check`"
            )
        state = state.after(logs, config.monitor)
        _save(model, work, state, averaged)
    return state


def _checkpoint(work: Path, epoch: int) -> Path:
    return work / _CHECKPOINTS / f"epoch-{epoch:04d}.keras"


def _own_weights(work: Path, epoch: int) -> Path:
    """What training goes on from where the checkpoint has averages."""
    return _checkpoint(work, epoch).with_suffix(".npz")


def _save(model: MultiTaskModel, work: Path, state: _State, averaged: list[AveragedWeights]) -> None:
    """Writes the epoch's model, copies it if it is the best; the state, written last, says that the epoch is done."""
    checkpoint = _checkpoint(work, state.epoch)
    model.save(checkpoint)
    for average in averaged:
        average.save(_own_weights(work, state.epoch))
    if state.best_epoch == state.epoch:
        copy = work / ("best." + MODEL)
        shutil.copyfile(checkpoint, copy)
        copy.replace(work / MODEL)
    write_json(work / HISTORY, state.history)
    write_json(work / _STATE, state.model_dump())
    for older in (work / _CHECKPOINTS).iterdir():
        if older.stem != checkpoint.stem:
            older.unlink()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
