"""When a trial is given up: its best value so far is worse than the median of what others had by then."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from mtlzoo.tuning.records import TrialRecord

LEAST_TRIALS = 5


def pruning_bound(trials: Sequence[TrialRecord], epoch: int, least_trials: int = LEAST_TRIALS) -> float | None:
    """What a trial must have reached by the end of an epoch.

        bound(s) = median over trials of 1/s sum_(i <= s) value_i

    Args:
        trials: All trials of the search; those with a result that reached the epoch count, pruned ones too.
        epoch: Epochs done, from 1.
        least_trials: Fewer than that many say nothing.

    Returns:
        The bound; `None` where there are too few trials.

    Example:
        >>> done = [TrialRecord(number=n, values={}, status="finished", curve=[n / 10]) for n in (5, 6, 7)]
        >>> pruning_bound(done, 1, least_trials=3)
        0.6

    Source: the median stopping rule of Golovin et al., "Google Vizier" (KDD 2017), section 3.2: running averages of
    completed trials. The least number of trials is our design.
    """
    averages = [
        statistics.fmean(trial.curve[:epoch]) for trial in trials if trial.has_result and len(trial.curve) >= epoch
    ]
    return statistics.median(averages) if len(averages) >= least_trials else None


def is_hopeless(curve: Sequence[float], bound: float | None, direction: Literal["max", "min"]) -> bool:
    """Whether the best value so far is strictly worse than the bound.

    Args:
        curve: The trial's values, epoch by epoch; at least one.
        bound: Of `pruning_bound`.
        direction: Of the objective.

    Source: the median stopping rule of Golovin et al. (KDD 2017), section 3.2.
    """
    if bound is None:
        return False
    return max(curve) < bound if direction == "max" else min(curve) > bound
