"""Which connections of a masked model serve which task, and how much the tasks' masks overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import keras
import numpy as np

from mtlzoo.callbacks.mask_density import masked_layers, task_names

DEAD = "dead"
ALL_LAYERS = "all layers"


@dataclass(frozen=True)
class Overlap:
    """How much the masks of two tasks overlap, against independent masks of the same densities.

        jaccard = both / either
        independent = sum_l n_l a_l b_l / sum_l n_l (a_l + b_l - a_l b_l)

    `n_l` connections in layer l, of which the tasks use the shares `a_l` and `b_l`. Over several layers, chance is
    taken layer by layer: layers of different density would otherwise look like agreement of the tasks.

    Attributes:
        tasks: The two tasks.
        both: Connections that both use.
        either: Connections that at least one uses.
        both_by_chance: What `both` would be on average if the masks were independent.
        either_by_chance: What `either` would be.

    Source: Jaccard (1912); the comparison with independent masks is our design.
    """

    tasks: tuple[str, str]
    both: int
    either: int
    both_by_chance: float
    either_by_chance: float

    @property
    def jaccard(self) -> float:
        """In [0, 1]; 0 where neither task uses any connection."""
        return self.both / self.either if self.either else 0.0

    @property
    def independent(self) -> float:
        """The Jaccard index of large independent masks, in [0, 1]; 0 where a task uses no connection."""
        return self.both_by_chance / self.either_by_chance if self.either_by_chance else 0.0


@dataclass(frozen=True)
class Sharing:
    """How the tasks share a set of connections: of a layer, of the inputs of a field, or of all layers.

    Attributes:
        name: What the connections belong to.
        tasks: Names of the T tasks.
        shape: `(inputs, units)` of a layer; `None` for several together.
        connections: Number of connections.
        open: By task, the connections that it uses.
        patterns: By pattern, as `pattern_names` has them, its connections; they add up to `connections`.
        overlaps: Of each pair of tasks.
    """

    name: str
    tasks: tuple[str, ...]
    shape: tuple[int, int] | None
    connections: int
    open: dict[str, int]
    patterns: dict[str, int]
    overlaps: tuple[Overlap, ...]

    @property
    def density(self) -> dict[str, float]:
        """By task, the share of the connections that it uses."""
        return {task: count / self.connections for task, count in self.open.items()}

    @property
    def shares(self) -> dict[str, float]:
        """By pattern, its share of the connections."""
        return {pattern: count / self.connections for pattern, count in self.patterns.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "shape": self.shape,
            "connections": self.connections,
            "density": self.density,
            "shares": self.shares,
            "overlap": [{"tasks": o.tasks, "jaccard": o.jaccard, "independent": o.independent} for o in self.overlaps],
        }


def sharing(model: keras.Model) -> list[Sharing]:
    """How the tasks share each masked layer of a model, at inference.

    A connection is open for a task where the task's mask is above 0. Tasks are named by the labels of the model's
    schema, or `task_1`, `task_2`, ... where it has none (a clone by `keras.models.clone_model`).

    Args:
        model: Any Keras model with `MaskedDense` layers among its layers.

    Returns:
        One entry per `MaskedDense` layer, in order.

    Raises:
        ValueError: It has no such layer, or its layers have different numbers of tasks.

    Example:
        >>> first = sharing(mtlzoo.models.NCS4CVR(dataset.schema))[0]
        >>> first.shares["shared"], first.overlaps[0].jaccard
        (1.0, 1.0)

    Source: our design.
    """
    layers = masked_layers(model)
    if not layers:
        raise ValueError(
            f"{model.name} has no masks to explain; models that share connections by masks have them (ncs4cvr)"
        )
    tasks = task_names(model)
    return [sharing_of(open_connections(layer), layer.name, tasks) for layer in layers]


def open_connections(layer: Any) -> np.ndarray:
    """Where a `MaskedDense` layer's masks are open at inference: bool `[T, inputs, units]`."""
    return keras.ops.convert_to_numpy(layer.masks()) > 0


def sharing_of(masks: np.ndarray, name: str, tasks: Sequence[str]) -> Sharing:
    """How tasks share connections, given their masks.

    Args:
        masks: Bool `[T, inputs, units]`.
        name: What the connections belong to.
        tasks: Names of the T tasks.

    Returns:
        The counts.

    Raises:
        ValueError: Not as many tasks as masks, or no connection at all.
    """
    _, inputs, units = masks.shape
    size = inputs * units
    if len(tasks) != len(masks) or not size:
        raise ValueError(f"{name}: masks of shape {masks.shape} need as many tasks, and a connection; tasks: {tasks}")
    counts = np.bincount(pattern_map(masks).ravel(), minlength=len(pattern_names(tasks)))
    used = [int(np.count_nonzero(mask)) for mask in masks]
    overlaps = []
    for i, j in combinations(range(len(tasks)), 2):
        both = int(np.count_nonzero(masks[i] & masks[j]))
        by_chance = used[i] * used[j] / size
        either, either_by_chance = used[i] + used[j] - both, used[i] + used[j] - by_chance
        overlaps.append(Overlap((tasks[i], tasks[j]), both, either, by_chance, either_by_chance))
    return Sharing(
        name=name,
        tasks=tuple(tasks),
        shape=(inputs, units),
        connections=size,
        open=dict(zip(tasks, used, strict=True)),
        patterns={pattern: int(n) for pattern, n in zip(pattern_names(tasks), counts, strict=True)},
        overlaps=tuple(overlaps),
    )


def total(parts: Sequence[Sharing], name: str = ALL_LAYERS) -> Sharing:
    """All connections of several layers together.

    Args:
        parts: At least one, all of the same tasks.
        name: Name of the sum.

    Returns:
        The sums; `shape` is `None`.
    """
    first = parts[0]
    overlaps = [
        Overlap(
            pair[0].tasks,
            sum(o.both for o in pair),
            sum(o.either for o in pair),
            sum(o.both_by_chance for o in pair),
            sum(o.either_by_chance for o in pair),
        )
        for pair in zip(*(part.overlaps for part in parts), strict=True)
    ]
    return Sharing(
        name=name,
        tasks=first.tasks,
        shape=None,
        connections=sum(part.connections for part in parts),
        open={task: sum(part.open[task] for part in parts) for task in first.open},
        patterns={pattern: sum(part.patterns[pattern] for part in parts) for pattern in first.patterns},
        overlaps=tuple(overlaps),
    )


def pattern_names(tasks: Sequence[str]) -> list[str]:
    """The ways in which tasks can use one connection.

    Returns:
        `<task> only` for each task; then `shared` for two tasks, `shared by all` and `shared by some` for more; `dead`.
    """
    shared = ["shared by all", "shared by some"] if len(tasks) > 2 else ["shared"] * (len(tasks) - 1)
    return [*(f"{task} only" for task in tasks), *shared, DEAD]


def pattern_map(masks: np.ndarray) -> np.ndarray:
    """For each connection the index of its pattern in `pattern_names`.

    Args:
        masks: Bool `[T, inputs, units]`.

    Returns:
        Integers `[inputs, units]`.
    """
    count = len(masks)
    users = np.count_nonzero(masks, axis=0)
    dead = count + min(count - 1, 2)  # the last of `pattern_names`
    single = np.argmax(masks, axis=0)
    return np.select([users == 0, users == 1, users == count], [dead, single, count], default=count + 1)
