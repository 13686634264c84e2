"""Winning tickets: which connections of a shared trunk each task uses, found by training, pruning and rewinding."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from mtlzoo.layers import MaskedDense
from mtlzoo.layers.pruning import prune_by_magnitude, pruning_rate
from mtlzoo.metrics import AUC
from mtlzoo.models import NCS4CVR
from mtlzoo.tasks import Task
from mtlzoo.training.run import Lottery, read_json, write_json
from mtlzoo.training.seeds import epoch_seed, seed_dropout

_START, _STATE = "start.weights.h5", "state.json"


@dataclass(frozen=True)
class Round:
    """One training of one task alone.

    Attributes:
        density: Share of the trunk's connections that it could use.
        value: The monitored value on the validation data; `None` where it does not exist.
    """

    density: float
    value: float | None


@dataclass(frozen=True)
class Ticket:
    """The connections that a task uses.

    Attributes:
        label: The task's label.
        rounds: What was tried, from dense to sparse.
        chosen: Index of the best round; among equals the sparsest.
        masks: Boolean mask `[D, units]` of each layer of the trunk.
    """

    label: str
    rounds: tuple[Round, ...]
    chosen: int
    masks: tuple[np.ndarray, ...]


def find_tickets(
    model: NCS4CVR,
    train: Any,
    valid: Any,
    lottery: Lottery | None = None,
    monitor: Literal["loss", "auc"] = "loss",
    folder: str | Path | None = None,
    seed: int = 1,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    announce: Callable[[str], None] = lambda text: None,
) -> list[Ticket]:
    """Finds a ticket for each task and gives the model its masks, rewound to where it started.

    For every label t, with the model's present weights as theta_0 and M_0 all ones:

        for k = 0 ... rounds:   train t alone under M_k, from theta_0 and a fresh optimizer; look at the validation data
                                M_(k+1) = prune_by_magnitude(weights, M_k, rate),   rate = 1 - final_density^(1/rounds)

    The ticket is the M_k with the best validation value, among equals the sparsest; M_0 is among them, so a task that
    is best off with every connection keeps them. Then the model has theta_0 and its tickets, and `fit` trains it.

    Alone, a label's head is trained on its own population: conversion on clicked impressions, except in the label space
    `ctcvr`, where its head is of the joint probability. Its loss is the one that the model is compiled with.

    Args:
        model: A compiled `NCS4CVR` with `mask="lottery"`, untrained.
        train: Batches `(features, labels, sample_weight)`, or a function from an epoch's seed to such batches.
        valid: Batches to choose the tickets on; not the test split.
        lottery: Rounds, density, epochs, scope; the defaults of `Lottery` where not given.
        monitor: `"loss"` (lower is better) or `"auc"` (higher is better), each of the task alone.
        folder: Keeps what is done, so that the same call goes on behind the last finished training. Without it
            nothing is kept.
        seed: Seed of order and dropout; every training of an epoch has the same.
        callbacks: Keras callbacks of every training.
        announce: Called with a line of text before every training.

    Returns:
        The tickets, in the order of the schema's labels.

    Raises:
        ValueError: The model has no fixed masks or is not compiled, or the folder holds tickets of other settings.
        FloatingPointError: A training diverged.

    Example:
        >>> model = NCS4CVR(dataset.schema, mask="lottery")
        >>> model.compile()
        >>> tickets = find_tickets(model, dataset.read("train", shuffle=True, seed=1), dataset.read("valid"))
        >>> history = model.fit(dataset.read("train", shuffle=True))

    Source: Xiao et al. (arXiv 2008.09872), as the released code prunes; M_0 among the choices is our reading of a
    ticket that is picked "according to the metrics".
    """
    if not isinstance(model, NCS4CVR) or model.mask != "lottery":
        raise ValueError('find_tickets needs an NCS4CVR with mask="lottery"')
    if not getattr(model, "compiled", False):
        raise ValueError("find_tickets needs a compiled model; call model.compile() first")
    with ExitStack() as stack:
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        search = _Search(model, lottery or Lottery(), monitor, place, seed)
        batches = train if callable(train) else lambda seed: train
        tickets = [search.ticket_of(task, batches, valid, callbacks, announce) for task in _alone(model)]
        search.rewind()
    for i, layer in enumerate(search.trunk):
        layer.set_masks(np.stack([ticket.masks[i] for ticket in tickets]))
    return tickets


def _alone(model: NCS4CVR) -> list[Task]:
    """For each label, the task that trains its head alone."""
    joint = model.label_space == "ctcvr"
    by_label = {task.label: task for task in model.tasks if not task.joint}
    if joint:
        by_label |= {task.label: task for task in model.tasks if task.joint}
    return [by_label[label.name] for label in model.schema.labels]


class _Search:
    """The trainings of all tasks, and what of them is done."""

    def __init__(self, model: NCS4CVR, lottery: Lottery, monitor: str, folder: Path, seed: int) -> None:
        self.model, self.lottery, self.monitor, self.folder, self.seed = model, lottery, monitor, folder, seed
        self.trunk = [layer for layer in model.layers if isinstance(layer, MaskedDense)]
        self.settings = {"lottery": lottery.model_dump(), "monitor": monitor, "seed": seed}
        self.rounds: dict[str, list[dict[str, Any]]] = {}
        state = folder / _STATE
        if state.is_file():
            known = read_json(state)
            if known["settings"] != self.settings:
                raise ValueError(
                    f"{folder}: holds tickets that were looked for with other settings ({known['settings']}); "
                    f"choose another folder"
                )
            self.rounds = known["rounds"]
            self.rewind()
            return
        folder.mkdir(parents=True, exist_ok=True)
        model.save_weights(folder / _START)
        self._write_state()

    def _write_state(self) -> None:
        write_json(self.folder / _STATE, {"settings": self.settings, "rounds": self.rounds})

    def rewind(self) -> None:
        """Back to the weights that the search started from, with all masks open."""
        self.model.load_weights(self.folder / _START)

    def ticket_of(
        self, task: Task, batches: Callable[[int], Any], valid: Any, callbacks: Sequence[Any], announce: Any
    ) -> Ticket:
        """Trains, prunes and rewinds until the last density, then chooses."""
        done = self.rounds.setdefault(task.label, [])
        if len(done) <= self.lottery.rounds:
            self._train_on(task, done, batches, valid, callbacks, announce)
        chosen = best_round([r["value"] for r in done], self.monitor)
        return Ticket(task.label, tuple(Round(**r) for r in done), chosen, tuple(self._masks(task, chosen)))

    def _train_on(
        self,
        task: Task,
        done: list[dict[str, Any]],
        batches: Callable[[int], Any],
        valid: Any,
        callbacks: Sequence[Any],
        announce: Any,
    ) -> None:
        """The trainings behind those that are done; each is added to them."""
        rate = pruning_rate(self.lottery.final_density, self.lottery.rounds)
        trainings = self.lottery.rounds + 1
        alone = self._compiled(task)
        start = _start_of(alone.optimizer)
        for k in range(len(done), trainings):
            masks = self._masks(task, k)
            density = sum(int(m.sum()) for m in masks) / sum(m.size for m in masks)
            announce(f"ticket of {task.label}, training {k + 1} of {trainings} ({density:.1%} of connections)")
            self.rewind()
            for variable, values in zip(alone.optimizer.variables, start, strict=True):
                variable.assign(np.broadcast_to(values, variable.shape))
            value = self._train(alone, task, masks, batches, valid, callbacks)
            kernels = [layer.kernel.numpy() for layer in self.trunk]
            if k < self.lottery.rounds:
                pruned = prune_by_magnitude(kernels, masks, rate, self.lottery.scope)
                np.savez_compressed(self._mask_file(task, k + 1), *pruned)
            done.append({"density": density, "value": value})
            self._write_state()

    def _mask_file(self, task: Task, k: int) -> Path:
        return self.folder / f"{task.label}-{k}.npz"

    def _masks(self, task: Task, k: int) -> list[np.ndarray]:
        """M_k, layer by layer."""
        if k == 0:
            return [np.ones(layer.kernel.shape, bool) for layer in self.trunk]
        with np.load(self._mask_file(task, k)) as arrays:
            return [arrays[f"arr_{i}"] for i in range(len(self.trunk))]

    def _compiled(self, task: Task) -> Any:
        """The task alone with an optimizer of its own, compiled once: all its trainings run the same graph."""
        alone = keras.Model(self.model.input, self.model.output[task.name])
        optimizer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(self.model.optimizer))
        alone.compile(optimizer, loss=_loss_of(self.model, task), weighted_metrics=[AUC(name="auc")])
        alone.optimizer.build(alone.trainable_variables)
        return alone

    def _train(
        self,
        alone: Any,
        task: Task,
        masks: list[np.ndarray],
        batches: Callable[[int], Any],
        valid: Any,
        callbacks: Sequence[Any],
    ) -> float | None:
        """Trains the task alone from where all stands; returns the monitored value."""
        for layer, mask in zip(self.trunk, masks, strict=True):
            layer.set_masks(np.broadcast_to(mask, (layer.num_tasks, *mask.shape)))
        logs: dict[str, float] = {}
        for epoch in range(self.lottery.epochs):
            seed_dropout(alone, epoch_seed(self.seed, epoch))
            history = alone.fit(
                _of_task(batches(epoch_seed(self.seed, epoch)), task.name),
                validation_data=_of_task(valid, task.name),
                initial_epoch=epoch,
                epochs=epoch + 1,
                callbacks=list(callbacks),
                shuffle=False,  # the batches come shuffled; Keras would warn that it does not
                verbose=0,
            )
            logs = {key: float(values[-1]) for key, values in history.history.items()}
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the ticket of {task.label}: the training loss is {logs['loss']}; lower the learning rate"
            )
        value = logs["val_loss" if self.monitor == "loss" else "val_auc"]
        return value if math.isfinite(value) else None


def best_round(values: Sequence[float | None], monitor: str) -> int:
    """Index of the best value, the last among equals; rounds go from dense to sparse.

    Args:
        values: Monitored value of each round; `None` where it does not exist.
        monitor: `"loss"`: lower is better; `"auc"`: higher is better.

    Returns:
        The index; 0, the dense round, where no value exists.
    """
    sign = 1.0 if monitor == "auc" else -1.0
    known = [(sign * value, k) for k, value in enumerate(values) if value is not None]
    return max(known)[1] if known else 0


def _loss_of(model: NCS4CVR, task: Task) -> Any:
    """The loss that the model trains the task's head with, be it through another output."""
    if not isinstance(model.loss, dict):
        return model.loss
    return next(model.loss[t.name] for t in model.tasks if t.trained and t.label == task.label)


def _start_of(optimizer: Any) -> list[np.ndarray]:
    """Each variable's values; a scalar where all are equal, as in fresh moments: those of tables take gigabytes."""
    values = [variable.numpy() for variable in optimizer.variables]
    return [v.flat[0] if v.size and np.all(v == v.flat[0]) else v for v in values]


def _of_task(batches: Any, name: str) -> Any:
    """Batches of one task."""
    return batches.map(lambda features, labels, weights: (features, labels[name], weights[name]))
