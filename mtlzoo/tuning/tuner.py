"""A KerasTuner tuner that reads the data itself, evaluates all tasks, prunes, and survives what happens to trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial

from mtlzoo import backend, models
from mtlzoo.callbacks import AveragedWeights
from mtlzoo.models import MultiTaskModel
from mtlzoo.training import RunConfig, evaluate
from mtlzoo.training.seeds import epoch_seed, seed_dropout
from mtlzoo.training.train import averaging_of, compile_as_configured
from mtlzoo.tuning.hypermodel import ZooHyperModel
from mtlzoo.tuning.objectives import TuningObjective
from mtlzoo.tuning.oracles import VALUE
from mtlzoo.tuning.pruning import is_hopeless, pruning_bound
from mtlzoo.tuning.records import Records, TrialRecord
from pipelines import DataError, Dataset

# A trial whose process was killed that often, most likely for want of memory, is not begun again.
MOST_KILLS = 2


class MultiTaskTuner(keras_tuner.Tuner):
    """Runs the trials of a search by training on a dataset; every trial leaves a record, whatever becomes of it.

    A trial trains as `mtlzoo.training.train` does, with the same seed and so the same order of impressions. After each
    epoch all tasks are evaluated on the validation split; the test split is never read. The epoch with the best value
    of the objective counts, and `patience` epochs without a better one end the trial.

    - A trial that is hopeless by the median rule (`mtlzoo.tuning.pruning`) is pruned, and keeps its value so far.
    - A loss that is NaN, exhausted memory, or any other error of one trial makes it fail, with the reason in its
      record; damaged data ends the search.
    - A trial that an interruption ends is run again. One whose process was killed twice counts as failed.

    Args:
        oracle: Of `mtlzoo.tuning.oracles.make_oracle`.
        hypermodel: What is built.
        objective: What the search is after.
        records: Where records are kept; workers of one search share them.
        folder: For KerasTuner's own files, which are never read again.
        prune: Whether hopeless trials are pruned; never for a Pareto front, whose trials have no one order.
        on_change: Called whenever a record changed.
        is_interrupted: Asked when a trial raised an error, since TensorFlow may make its own error of Ctrl-C.

    Example:
        >>> tuner = MultiTaskTuner(oracle, hypermodel("mmoe", dataset.schema), wanted, Records(folder), folder)
        >>> tuner.search(dataset, epochs=2)

    Source: our design.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: ZooHyperModel,
        objective: TuningObjective,
        records: Records,
        folder: Path,
        prune: bool = True,
        on_change: Callable[[], None] = lambda: None,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        # Without a hypermodel KerasTuner builds no model to find out what is searched: the oracle knows.
        super().__init__(oracle=oracle, directory=str(folder), project_name="keras_tuner")
        self.hypermodel = hypermodel
        self.wanted = objective
        self.records = records
        self._prunes = prune and not objective.several
        self._on_change = on_change
        self._is_interrupted = is_interrupted

    def save(self) -> None:
        """Keeps the state of the oracle, where it is in this process; the tuner has none of its own."""
        if isinstance(self.oracle, keras_tuner.Oracle):
            self.oracle.save()

    def load_model(self, trial: Trial) -> MultiTaskModel:
        """Trials keep no weights.

        Raises:
            NotImplementedError: Always; it says what to do instead.
        """
        raise NotImplementedError(
            "the trials of a search keep no weights: train the winner with "
            "mtlzoo.training.train(search.run_config(search.winner()), OUT)"
        )

    def pre_create_trial(self) -> None:
        """A worker that hyperband makes wait asks ten times a second, not as often as it can."""
        time.sleep(0.1)

    def run_trial(
        self, trial: Trial, dataset: Dataset, epochs: int = 2, batch_size: int = 1024, seed: int = 1
    ) -> dict[str, float]:
        """Trains one model; `search` takes these arguments.

        Args:
            trial: KerasTuner's, with the values to try.
            dataset: Trained on its split `train`, evaluated on `valid`.
            epochs: Epochs of a trial; hyperband says itself how many, up to these.
            batch_size: Impressions per step, where it is not searched.
            seed: Of initial weights, order of impressions and dropout; the same for all trials.

        Returns:
            The value of the objective and its measures; NaN for a trial that failed.
        """
        number = int(trial.trial_id) + 1
        hp = trial.hyperparameters
        epochs = hp.values.get("tuner/epochs", epochs)
        values = self.hypermodel.values(hp)
        known = self.records.find(number)
        if known is not None and known.is_over:
            return self._results(known)
        begun = (known.begun if known is not None else 0) + 1
        record = TrialRecord(number=number, values=values, epochs=epochs, begun=begun, worker=self.tuner_id)
        if record.begun > MOST_KILLS:
            record.status, record.reason = "failed", f"its process was killed {MOST_KILLS} times; out of memory?"
            return self._keep(record)
        self._keep(record)
        config = self.hypermodel.config(values, data=str(dataset.folder), epochs=epochs, seed=seed)
        if "batch_size" not in config.model_fields_set:
            config = config.model_copy(update={"batch_size": batch_size})
        started = time.monotonic()
        try:
            self._train(record, dataset, config)
        except DataError as error:
            raise keras_tuner.errors.FatalValueError(str(error)) from error
        except Exception as error:
            if self._is_interrupted():
                self._interrupt(record)
                raise keras_tuner.errors.FatalRuntimeError("interrupted") from error
            record.status, record.reason = "failed", reason_of(error)
        except BaseException:
            self._interrupt(record)
            raise
        finally:
            keras.backend.clear_session()
        record.seconds = time.monotonic() - started
        return self._keep(record)

    def _train(self, record: TrialRecord, dataset: Dataset, config: RunConfig) -> None:
        """Trains a model epoch by epoch, and writes down what comes of it."""
        keras.utils.set_random_seed(config.seed)
        model = models.create(config.model, dataset.schema, **config.arguments)
        compile_as_configured(model, config, weighted_metrics=None)  # `evaluate` measures, after each epoch
        averaged = averaging_of(config, model)
        best: tuple[float, ...] | None = None
        best_epoch = 0
        for epoch in range(config.epochs):
            self._fit_epoch(model, dataset, config, epoch, averaged)
            evaluation = evaluate(model, dataset, "valid")["tasks"]
            record.curve.append(self.wanted.value(evaluation))
            cost = self.wanted.cost(evaluation)
            if best is None or cost < best:
                best, best_epoch = cost, epoch + 1
                record.best_epoch, record.value = best_epoch, record.curve[-1]
                record.evaluation, record.note = evaluation, self.wanted.note(evaluation)
            bound = pruning_bound(self.records.all(), epoch + 1) if self._prunes and epoch + 1 < config.epochs else None
            if is_hopeless(record.curve, bound, self.wanted.direction):
                record.status = "pruned"
                record.reason = f"worse after epoch {epoch + 1} than the median of the others, {bound:.4f}"
                return
            self._keep(record)
            if epoch + 1 - best_epoch >= config.patience:
                break
        record.status = "finished"

    def _fit_epoch(
        self, model: MultiTaskModel, dataset: Dataset, config: RunConfig, epoch: int, averaged: list[AveragedWeights]
    ) -> None:
        seed_dropout(model, epoch_seed(config.seed, epoch))
        batches = dataset.read("train", config.batch_size, shuffle=True, seed=epoch_seed(config.seed, epoch))
        with dataset.damaged_shards_named("train"):
            history = model.fit(
                batches,
                initial_epoch=epoch,
                epochs=epoch + 1,
                callbacks=[keras.callbacks.TerminateOnNaN(), *averaged],
                verbose=0,
            )
        loss = history.history["loss"][-1]
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss became {loss} in epoch {epoch + 1}")

    def _interrupt(self, record: TrialRecord) -> None:
        record.status, record.begun = "interrupted", record.begun - 1
        self.records.write(record)

    def _keep(self, record: TrialRecord) -> dict[str, float]:
        self.records.write(record)
        self._on_change()
        return self._results(record)

    def _results(self, record: TrialRecord) -> dict[str, float]:
        """What the oracle is told."""
        if not record.has_result or record.value is None:
            return {VALUE: math.nan}
        measures = {str(measure): measure.of(record.evaluation) for measure in self.wanted.measures}
        return {VALUE: record.value, **measures}


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line.

    Example:
        >>> reason_of(MemoryError())
        'out of memory'
    """
    said = (str(error).strip().splitlines() or [""])[0]
    if backend.is_out_of_memory(error):
        return f"out of memory: {said}" if said else "out of memory"
    if isinstance(error, FloatingPointError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
