"""A model of the zoo as KerasTuner's HyperModel: its search space, and the compiled model for a point of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras_tuner
from pydantic import ValidationError

from mtlzoo import models
from mtlzoo.metrics import AUC, ExpectedCalibrationError, LogLoss, NormalizedEntropy
from mtlzoo.models import MODELS, MultiTaskModel, arguments_of
from mtlzoo.models.search_space import (
    BATCH_SIZE,
    EMA_MOMENTUM,
    LEARNING_RATE,
    LOSS_WEIGHT,
    OPTIMIZER,
    Choice,
    Dimension,
    search_space_of,
)
from mtlzoo.tasks import tasks_of
from mtlzoo.training import RunConfig
from mtlzoo.training.run import AUTO_MOMENTUM
from mtlzoo.training.train import compile_as_configured
from mtlzoo.tuning.names import known_name
from pipelines.schema import Schema

_METRICS = {"auc": AUC, "log_loss": LogLoss, "normalized_entropy": NormalizedEntropy, "ece": ExpectedCalibrationError}
_WEIGHTS = "loss_weights."
# What may be held fixed besides arguments of the model. (Of `RunConfig`; the rest is no setting of a single training.)
FIXED_TRAINING = (
    "learning_rate", "optimizer", "ema_momentum", "loss_weights", "batch_size", "patience", "monitor",
)  # fmt: skip
# What a tuner that is handed batches cannot search: they are made already, and it keeps the weights of an epoch's end.
_OF_OUR_TUNER = ("batch_size", "ema_momentum")
FIXED_DATA = ("features", "without")


class ZooHyperModel(keras_tuner.HyperModel):
    """What `hypermodel` makes.

    Attributes:
        model: Name of the model.
        schema: Fitted schema.
        space: What is searched, by name.
        fixed: What is not, where it differs from the defaults.
    """

    def __init__(
        self, model: str, schema: Schema, space: Mapping[str, Dimension], fixed: Mapping[str, Any], metrics: list[str]
    ) -> None:
        super().__init__(name=model)
        self.model = model
        self.schema = schema
        self.space = dict(space)
        self.fixed = dict(fixed)
        self._metrics = metrics

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Names everything that is searched, so that no model need be built to find out."""
        for name, dimension in self.space.items():
            _declare(hp, name, dimension, self._default(name))

    def values(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The values of a trial as the model takes them, by name in the order of `space`."""
        return {
            name: dimension.value(_declare(hp, name, dimension, self._default(name)))
            for name, dimension in self.space.items()
        }

    def config(self, values: Mapping[str, Any], **settings: Any) -> RunConfig:
        """How a model with some values is trained.

        Args:
            values: By name of a hyper-parameter; tuples may be lists.
            **settings: Of `RunConfig`, such as `data` and `epochs`.

        Raises:
            ValueError: A setting that is out of range.
        """
        taken = {name: self.space[name].value(value) for name, value in values.items()}
        arguments, training = _parted(self.model, {**self.fixed, **taken})
        weights = {n.removeprefix(_WEIGHTS): training.pop(n) for n in list(training) if n.startswith(_WEIGHTS)}
        if weights:
            training["loss_weights"] = {**(training.get("loss_weights") or {}), **weights}
        try:
            return RunConfig(**{"model": self.model, "arguments": arguments, "data": "", **training, **settings})
        except ValidationError as error:
            fault = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r})") from None

    def build(self, hp: keras_tuner.HyperParameters) -> MultiTaskModel:
        """The compiled model of a trial."""
        config = self.config(self.values(hp))
        model = models.create(self.model, self.schema, **config.arguments)
        compile_as_configured(model, config)
        self._compile(model, config)
        return model

    def fit(self, hp: keras_tuner.HyperParameters, model: MultiTaskModel, *args: Any, **kwargs: Any) -> Any:
        """`model.fit` as KerasTuner's own tuners call it.

        A tuner that was given an optimizer, a loss or metrics has compiled the model anew, and lost the loss weights;
        they are put back. With one task, logs are named for it too, as with several.

        Raises:
            FatalValueError: `batch_size` is searched, but these batches are made already; or `ema_momentum` is searched
                or fixed, but such a tuner keeps the weights of an epoch's end.
        """
        refused = [n for n in _OF_OUR_TUNER if n in self.space] + ["ema_momentum"] * ("ema_momentum" in self.fixed)
        if refused:
            raise keras_tuner.errors.FatalValueError(
                f"{refused[0]} cannot be set for a tuner that is handed batches; leave it out of `search` and `fixed`, "
                "or use mtlzoo.tuning.Search"
            )
        self._compile(model, self.config(self.values(hp)))
        history = model.fit(*args, **kwargs)
        if len(model.tasks) == 1:
            task = model.tasks[0].name
            for name in list(history.history):
                prefix, metric = ("val_", name.removeprefix("val_")) if name.startswith("val_") else ("", name)
                history.history.setdefault(f"{prefix}{task}_{metric}", history.history[name])
        return history

    def _compile(self, model: MultiTaskModel, config: RunConfig) -> None:
        """Compiles with the optimizer and the losses that the model has, the trial's loss weights, and our metrics."""
        given = config.loss_weights or model.default_loss_weights()
        loss_weights = {task.name: float(given.get(task.name, 1.0)) for task in model.tasks} if given else None
        model.compile(
            optimizer=model.optimizer,
            loss=model.loss,
            loss_weights=loss_weights,
            weighted_metrics={task.name: [_METRICS[name]() for name in self._metrics] for task in model.tasks},
        )

    def _default(self, name: str) -> Any:
        if name.startswith(_WEIGHTS):
            return 1.0
        if name == "ema_momentum":
            return AUTO_MOMENTUM
        defaults = arguments_of(self.model)
        return defaults[name] if name in defaults else RunConfig.model_fields[name].default


def hypermodel(
    name: str,
    schema: Schema,
    search: Iterable[str] | None = None,
    fixed: Mapping[str, Any] | None = None,
    metrics: Iterable[str] = ("auc", "log_loss"),
) -> ZooHyperModel:
    """A model of the zoo with its search space, for any of KerasTuner's tuners.

    Args:
        name: A key of `mtlzoo.models.MODELS`.
        schema: Fitted schema, as `pipelines.open_dataset(DIR).schema` has it.
        search: Names of what is searched. `None`: everything that the model's class declares in `SEARCH_SPACE`,
            `learning_rate`, and `loss_weights.TASK` for every trained task but the first, which weighs 1. On request
            also `optimizer`, and where the tuner reads the data itself (`mtlzoo.tuning.Search`) `batch_size` and
            `ema_momentum`.
        fixed: Arguments of the model, and `learning_rate`, `optimizer`, `loss_weights` and so on, that differ from the
            defaults; they are not searched.
        metrics: What `fit` logs of every task: `"auc"`, `"log_loss"`, `"normalized_entropy"`, `"ece"`.

    Returns:
        A `keras_tuner.HyperModel`.

    Raises:
        ValueError: An unknown model, hyper-parameter, argument or metric; the message lists the known ones. Something
            is searched and fixed at once; nothing is searched; tickets or alternation, which no trial trains with.

    Example:
        >>> tuner = keras_tuner.RandomSearch(
        ...     hypermodel("mmoe", dataset.schema, search=["num_experts", "learning_rate"]),
        ...     objective=objective("ctcvr", "auc"),
        ...     max_trials=10,
        ... )
        >>> tuner.search(dataset.read("train", shuffle=True), validation_data=dataset.read("valid"), epochs=2)

    Source: our design.
    """
    fixed = dict(fixed or {})
    names = [known_name(metric, _METRICS, "metric of model.fit") for metric in metrics]
    known = known_dimensions(name, schema, fixed.get("label_space"))
    _parted(name, fixed)
    if search is None:
        on_request = ("optimizer", *_OF_OUR_TUNER)
        weighed = "loss_weights" in fixed
        chosen = [n for n in known if n not in (*fixed, *on_request) and not (weighed and n.startswith(_WEIGHTS))]
    else:
        chosen = [known_name(n, known, f"hyper-parameter of {name}") for n in dict.fromkeys(search)]
    both = [n for n in chosen if n in fixed or (n.startswith(_WEIGHTS) and n[len(_WEIGHTS) :] in _weights(fixed))]
    if both:
        raise ValueError(f"{', '.join(both)}: searched and fixed at once; leave it out of one of the two")
    if not chosen:
        raise ValueError(f"nothing is left to search for {name}; it has {', '.join(known)}")
    made = ZooHyperModel(name, schema, {n: known[n] for n in chosen}, fixed, names)
    config = made.config({})
    if config.arguments.get("mask") == "lottery":
        raise ValueError("tickets are not searched for in every trial: tune ncs4cvr with mask=learned")
    return made


def known_dimensions(name: str, schema: Schema, label_space: Any = None) -> dict[str, Dimension]:
    """Everything of a model that can be searched.

    Args:
        name: Name of the model.
        schema: Its tasks have loss weights.
        label_space: Which tasks are trained; `None`: the model's default.

    Returns:
        By name: arguments of the model, settings of the training, `loss_weights.TASK` for every trained task but the
        first.

    Raises:
        ValueError: Unknown model or label space.

    Example:
        >>> list(known_dimensions("shared_bottom", dataset.schema))[:3]
        ['bottom_units', 'tower_units', 'embedding_dim']

    Source: our design.
    """
    arguments = arguments_of(name)
    trained = [task.name for task in tasks_of(schema, label_space or arguments["label_space"]) if task.trained]
    return {
        **search_space_of(MODELS[name]),
        "learning_rate": LEARNING_RATE,
        "optimizer": OPTIMIZER,
        "batch_size": BATCH_SIZE,
        "ema_momentum": EMA_MOMENTUM,
        **{f"{_WEIGHTS}{task}": LOSS_WEIGHT for task in trained[1:]},
    }


def _weights(fixed: Mapping[str, Any]) -> Mapping[str, float]:
    return fixed.get("loss_weights") or {}


def _parted(model: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings as arguments of the model, and of its training.

    Raises:
        ValueError: One is neither; the message lists the known ones.
    """
    arguments = [name for name in arguments_of(model) if name != "name"]
    training = (*FIXED_TRAINING, *FIXED_DATA)
    for name in settings:
        if not name.startswith(_WEIGHTS):
            known_name(name, (*arguments, *training), f"setting of {model} to hold fixed")
    return (
        {name: value for name, value in settings.items() if name in arguments},
        {name: value for name, value in settings.items() if name not in arguments},
    )


def _declare(hp: keras_tuner.HyperParameters, name: str, dimension: Dimension, default: Any) -> Any:
    """A dimension as KerasTuner's hyper-parameter; its value there. Choices are texts: KerasTuner knows no tuples."""
    if isinstance(dimension, Choice):
        shown = dimension.text(default) if default in dimension else dimension.texts[0]
        return hp.Choice(name, list(dimension.texts), default=shown)
    start = default if default in dimension else dimension.low
    sampling = "log" if dimension.log else "linear"
    if dimension.whole:
        return hp.Int(name, int(dimension.low), int(dimension.high), sampling=sampling, default=start)
    return hp.Float(name, dimension.low, dimension.high, sampling=sampling, default=start)
