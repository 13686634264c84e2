"""KerasTuner's oracles, with a state that survives a kill at any moment, a budget, and searches for a Pareto front."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial
from sklearn.exceptions import ConvergenceWarning

from mtlzoo.training.run import read_json, write_json
from mtlzoo.tuning.names import known_name
from mtlzoo.tuning.objectives import Pareto, TuningObjective
from mtlzoo.tuning.pareto import drawn_weights, mixture

ALGORITHMS = ("bayesian", "random", "hyperband")
# Name under which a trial's value is reported; its direction is the objective's.
VALUE = "value"
# A search whose first trials all fail is not worth its budget.
HOPELESS = 5


class _Kept(keras_tuner.Oracle):
    """What all oracles of ours do besides choosing values; to be mixed into one of KerasTuner's.

    KerasTuner writes its state in place, trial by trial; a kill in the middle leaves half a file. Here the whole state
    is one file, written by rename, and KerasTuner's files are never read.
    """

    state_file: Path
    wanted: TuningObjective
    search_seed: int
    deadline: float | None = None
    begins_with_defaults = True

    def save(self) -> None:
        """Writes the state of the oracle and of all its trials at once."""
        trials = {trial_id: trial.get_state() for trial_id, trial in self.trials.items()}
        write_json(self.state_file, {"oracle": self.get_state(), "trials": trials})

    def reload(self) -> None:
        """Reads what `save` wrote; a trial that was under way will be run again."""
        kept = read_json(self.state_file)
        self.trials = {trial_id: Trial.from_state(state) for trial_id, state in kept["trials"].items()}
        state = kept["oracle"]
        under_way = [trial_id for trial_id in state["ongoing_trials"].values() if trial_id not in state["retry_queue"]]
        self.set_state({**state, "retry_queue": [*state["retry_queue"], *under_way], "ongoing_trials": {}})

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """KerasTuner's; no further trial where time is up, or where the first five have all failed."""
        if tuner_id not in self.ongoing_trials and (self._time_is_up() or self._is_hopeless()):
            self.tuner_ids.discard(tuner_id)
            return Trial(self.get_space(), trial_id="none", status="STOPPED")
        return super().create_trial(tuner_id)

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        """KerasTuner's; of a trial that failed there is nothing to report."""
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return super().update_trial(trial_id, known, step) if VALUE in known else self.trials[trial_id]

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        """KerasTuner's; a trial without a value has failed."""
        if not self.trials[trial.trial_id].metrics.exists(VALUE):
            trial.status = "FAILED"
        super().end_trial(trial)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """KerasTuner's, after a first trial of the defaults: a search that ends has nothing worse to show than them.

        For a Pareto front, all trials are scored anew by another mixture of the measures before values are chosen.
        """
        if self.begins_with_defaults and not self.trials:
            return {"status": "RUNNING", "values": dict(self.get_space().values)}
        if isinstance(self.wanted, Pareto):
            self._score_by_drawn_mixture(self.wanted)
        return super().populate_space(trial_id)

    def _score_by_drawn_mixture(self, wanted: Pareto) -> None:
        done = [trial for trial in self.trials.values() if trial.status == "COMPLETED"]
        if not done:
            return
        signs = np.array([1.0 if measure.direction == "min" else -1.0 for measure in wanted.measures])
        values = [[trial.metrics.get_last_value(str(measure)) for measure in wanted.measures] for trial in done]
        weights = drawn_weights(len(signs), self.search_seed, len(self.trials))
        for trial, score in zip(done, mixture(signs * np.array(values), weights), strict=True):
            trial.score = float(score)

    def _time_is_up(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _is_hopeless(self) -> bool:
        ended = [trial.status for trial in self.trials.values() if trial.status in ("COMPLETED", "FAILED")]
        return len(ended) >= HOPELESS and "COMPLETED" not in ended


class _Random(_Kept, keras_tuner.oracles.RandomSearchOracle):
    """The defaults, then points at random."""


class _Bayesian(_Kept, keras_tuner.oracles.BayesianOptimizationOracle):
    """The defaults and random points first, then where a Gaussian process expects most."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """As the other oracles, without scikit-learn's remark that a scale of the process lies at its bound."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().populate_space(trial_id)


class _Hyperband(_Kept, keras_tuner.oracles.HyperbandOracle):
    """Many short trials, and longer ones of the best; its brackets leave no place for a trial of the defaults."""

    begins_with_defaults = False


def make_oracle(
    algorithm: str,
    wanted: TuningObjective,
    space: keras_tuner.HyperParameters,
    state_file: Path,
    trials: int,
    epochs: int,
    seed: int,
    max_minutes: float | None = None,
) -> keras_tuner.Oracle:
    """An oracle that goes on from its state file, where there is one.

    Args:
        algorithm: `"bayesian"`, `"random"` or `"hyperband"`.
        wanted: What the search is after.
        space: What is searched.
        state_file: Where its state is kept.
        trials: Most trials, those of earlier calls among them.
        epochs: Epochs of a trial; of the longest ones with hyperband.
        seed: The same seed gives the same values, with one worker.
        max_minutes: After that no trial is begun; `None`: no such limit.

    Raises:
        ValueError: An unknown algorithm; hyperband for a Pareto front, whose trials have no one order.

    Example:
        >>> space = keras_tuner.HyperParameters()
        >>> hypermodel("mmoe", dataset.schema).declare_hyperparameters(space)
        >>> wanted = parse_objective("ctcvr.auc", dataset.schema)
        >>> oracle = make_oracle("random", wanted, space, Path("state.json"), trials=10, epochs=2, seed=1)

    Source: our design around KerasTuner's oracles.
    """
    known_name(algorithm, ALGORITHMS, "algorithm")
    common = {
        "objective": keras_tuner.Objective(VALUE, wanted.direction),
        "hyperparameters": space,
        "seed": seed + 1,  # to KerasTuner 0 is no seed
        "max_consecutive_failed_trials": trials + 1,
    }
    oracle: Any
    if algorithm == "hyperband":
        if wanted.several:
            raise ValueError("hyperband needs one objective: for a Pareto front take bayesian or random")
        oracle = _Hyperband(max_epochs=epochs, hyperband_iterations=None, **common)
        oracle.max_trials = trials
    elif algorithm == "random":
        oracle = _Random(max_trials=trials, **common)
    else:
        first = min(max(4, len(space.space)), max(2, trials // 2))
        oracle = _Bayesian(max_trials=trials, num_initial_points=first, **common)
    oracle.state_file, oracle.wanted, oracle.search_seed = state_file, wanted, seed
    oracle.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    oracle.verbose = 0
    if state_file.exists():
        oracle.reload()
    return oracle
