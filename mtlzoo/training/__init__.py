"""Training, evaluation and run directories."""

from mtlzoo.training.evaluate import evaluate
from mtlzoo.training.lottery import find_tickets
from mtlzoo.training.run import Lottery, Run, RunConfig, open_run
from mtlzoo.training.train import train

__all__ = ["Lottery", "Run", "RunConfig", "evaluate", "find_tickets", "open_run", "train"]
