"""Training, evaluation and run directories."""

from mtlzoo.training.evaluate import evaluate
from mtlzoo.training.run import Run, RunConfig, open_run
from mtlzoo.training.train import train

__all__ = ["Run", "RunConfig", "evaluate", "open_run", "train"]
