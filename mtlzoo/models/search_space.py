"""Search spaces: which values of an argument are worth trying. Every model declares its own beside its defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Significant digits of what a continuous range gives: a learning rate that reads 0.0007317 is as good as its neighbour.
_DIGITS = 4


@dataclass(frozen=True)
class Choice:
    """One of several values, in an order that a model of the objective may use (small to large, simple to rich).

    Args:
        values: At least two: numbers, texts, booleans, `None`, or tuples of numbers or texts.

    Raises:
        ValueError: Fewer than two values, or two that read the same.

    Example:
        >>> units = Choice(((128,), (256, 128)))
        >>> units.text((256, 128)), units.value("256-128"), units.position((128,))
        ('256-128', (256, 128), 0.0)

    Source: our design.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len(set(self.texts)) < len(self.values):
            raise ValueError(f"a Choice needs at least two different values, got {self.values!r}")

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as texts, in order."""
        return tuple(map(text_of, self.values))

    @property
    def ends(self) -> tuple[Any, Any]:
        """The first and the last value."""
        return self.values[0], self.values[-1]

    def __str__(self) -> str:
        return ", ".join(self.texts)

    def __contains__(self, value: Any) -> bool:
        return text_of(value) in self.texts

    def text(self, value: Any) -> str:
        """A value as a text: `256-128` for a tuple."""
        return text_of(value)

    def value(self, given: Any) -> Any:
        """The value that a text, or a value that was stored as JSON, stands for.

        Raises:
            ValueError: It is none of the values.
        """
        try:
            return self.values[self.texts.index(given if isinstance(given, str) else text_of(given))]
        except ValueError:
            raise ValueError(f"{given!r} is none of {self}") from None

    def position(self, value: Any) -> float:
        """Where a value lies between the first, 0, and the last, 1."""
        return self.texts.index(text_of(value)) / (len(self.values) - 1)


@dataclass(frozen=True)
class Range:
    """A number between two bounds: an integer where both bounds are, else rounded to four significant digits.

    Args:
        low: Lowest value.
        high: Highest value, above `low`.
        log: Whether orders of magnitude count alike; needs `low` above 0.

    Raises:
        ValueError: The bounds are the wrong way round, or `log` without a positive `low`.

    Example:
        >>> rate = Range(1e-4, 1e-2, log=True)
        >>> rate.position(1e-3), rate.value(0.000731749), 0.5 in rate
        (0.5, 0.0007317, False)

    Source: our design.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"a Range needs low below high, got {self.low!r} and {self.high!r}")
        if self.log and not self.low > 0:
            raise ValueError(f"a Range with log=True needs low above 0, got {self.low!r}")

    @property
    def whole(self) -> bool:
        """Whether it holds integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, Any]:
        """The lowest and the highest value."""
        return self.low, self.high

    def __str__(self) -> str:
        return f"{text_of(self.low)} to {text_of(self.high)}{' (log)' if self.log else ''}"

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.whole or value == int(value))

    def text(self, value: Any) -> str:
        """A value as a text."""
        return text_of(value)

    def value(self, given: Any) -> Any:
        """A number as it is used: rounded, and within the bounds that rounding may have left."""
        if self.whole:
            return int(min(max(round(given), self.low), self.high))
        return min(max(float(f"{given:.{_DIGITS}g}"), self.low), self.high)

    def position(self, value: Any) -> float:
        """Where a value lies between the bounds: 0 lowest, 1 highest, on the scale that is searched."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


Dimension = Choice | Range
SearchSpace = Mapping[str, Dimension]


def text_of(value: Any) -> str:
    """A value as people read it: `256-128` for a tuple, `none` for `None` and an empty tuple, `yes` and `no`."""
    if isinstance(value, tuple | list):
        return "-".join(map(text_of, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def search_space_of(model: type) -> SearchSpace:
    """The search space that a model's class declares; empty where it declares none."""
    return getattr(model, "SEARCH_SPACE", {})


# What all models take.
OF_ALL_MODELS: SearchSpace = {
    "embedding_dim": Choice((8, 16, 32)),
    "numeric_embedding": Choice((None, "piecewise_linear", "periodic")),
    "dropout": Choice((0.0, 0.1, 0.2, 0.3, 0.5)),
}
TOWER_UNITS = Choice(((32,), (64,), (128,), (128, 64)))

# What training takes, whatever the model; names and defaults are those of `mtlzoo.training.RunConfig`.
LEARNING_RATE = Range(1e-4, 1e-2, log=True)
OPTIMIZER = Choice(("lazy_adam", "row_sparse_adagrad"))
BATCH_SIZE = Choice((1024, 2048, 4096, 8192))
EMA_MOMENTUM = Choice((None, 0.98, 0.99, 0.995))
# The first trained task weighs 1, and others relative to it: to Adam, a factor common to all losses is nothing.
LOSS_WEIGHT = Range(0.1, 10.0, log=True)
