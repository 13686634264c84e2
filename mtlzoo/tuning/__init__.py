"""Search for hyper-parameters with KerasTuner: models as hypermodels, objectives over several tasks, a tuner."""

from mtlzoo.tuning.hypermodel import ZooHyperModel, hypermodel, known_dimensions
from mtlzoo.tuning.objectives import METRICS, TuningObjective, objective, parse_objective
from mtlzoo.tuning.oracles import ALGORITHMS, make_oracle
from mtlzoo.tuning.records import Records, TrialRecord
from mtlzoo.tuning.search import Search, SearchConfig, open_search
from mtlzoo.tuning.tuner import MultiTaskTuner
from mtlzoo.tuning.workers import run_workers

__all__ = [
    "ALGORITHMS",
    "METRICS",
    "MultiTaskTuner",
    "Records",
    "Search",
    "SearchConfig",
    "TrialRecord",
    "TuningObjective",
    "ZooHyperModel",
    "hypermodel",
    "known_dimensions",
    "make_oracle",
    "objective",
    "open_search",
    "parse_objective",
    "run_workers",
]
