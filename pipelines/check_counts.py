"""What `pipelines.check` counts: how often each cell of each feature occurs, per split, alone and with each label.

A signal is one view of a feature that puts an impression (or each value of a list) into a cell: an id, a bucket, a fine
quantile bin of a number, the length of a list, whether a value is missing. Memory is bounded by the number of cells; a
vocabulary beyond `MAX_CELLS` has its rarest ids pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.dataset import Dataset
from pipelines.schema import FIRST_ID, Categorical, MultiCategorical, Schema, Target
from pipelines.vocabulary import quantile_edges

MAX_CELLS = 1 << 17
VALUE_BINS = 256
NO_CELL = -1

_BATCH_ROWS = 32_768
_SAMPLE_ROWS = 1 << 16
_SCORE_BINS = 1 << 13
_SCORE_RANGE = 20.0  # of log-odds, to both sides of 0
_PRIOR_ROWS = 10.0

Features = Mapping[str, np.ndarray]
View = Literal["id", "bucket", "value", "missing", "list", "length"]
# Labels that must all be 1.
Event = frozenset[str]


@dataclass(frozen=True)
class Signal:
    """One view of a feature.

    Attributes:
        feature: Name of the feature.
        view: Which view.
        size: Number of cells.
        cells: Batch → cells int64 `[rows]`, or `[rows, length]` with `NO_CELL` at the padding.
        pooled: Whether the last cell holds all the rarest ids of a vocabulary beyond `MAX_CELLS`.
    """

    feature: str
    view: View
    size: int
    cells: Callable[[Features], np.ndarray]
    pooled: bool = False

    @property
    def of_ids(self) -> bool:
        """Whether the cells are ids of a vocabulary or of hash buckets."""
        return self.view in ("id", "list")


class Counts:
    """Counts of all signals over the splits of a dataset: two readings of train, one of each other split.

    The rates of train's cells score the held-out rows (valid and test together), so that an id seen once tells nothing.
    A train without rows (a log converted like another dataset) has counts of 0, and no rates that tell anything.

    Args:
        dataset: The dataset.

    Attributes:
        splits: The splits that have rows.
        held_out: Those of them that are not train.
        signals: All views of all features.
        rows: By split and event, the impressions where the event happens.
        cells: By split and signal, int64 `[events, size]`.
        orphans: By split and label, impressions with the label but without its parent.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.schema = dataset.schema
        self.splits = [split for split in dataset.manifest.splits if dataset.rows(split)]
        self.held_out = [split for split in self.splits if split != "train"]
        self.signals = _signals(dataset.schema, _value_edges(dataset))
        self.events = sorted({e for t in self.schema.targets for e in _events(t)} | {Event()}, key=sorted)
        counted = ["train", *self.held_out]
        self.rows = {split: dict.fromkeys(self.events, 0) for split in counted}
        self.orphans = {split: {label.name: 0 for label in self.schema.labels if label.parent} for split in self.splits}
        self.cells = {
            split: [np.zeros((len(self.events), signal.size), np.int64) for signal in self.signals] for split in counted
        }
        self._list_scores: dict[tuple[int, str], np.ndarray] = {}
        # Train first: its rates score the lists of the others.
        for split in [split for split in counted if split in self.splits]:
            for features, labels in _batches(dataset, split):
                self._add(split, features, labels)

    def population(self, split: str, target: Target) -> tuple[int, int]:
        """Rows of the target's population in a split, and the positives among them."""
        population, positive = _events(target)
        return self.rows[split][population], self.rows[split][positive]

    def held_out_auc(self, index: int, target: Target) -> float:
        """AUC of one signal alone: its cell's rate in train is the score of a held-out row (0.5 if undefined)."""
        if self.signals[index].view == "list":
            negative, positive = self._list_scores.get((index, target.name), np.zeros((2, 1)))
            return _auc(positive, negative)
        population, positive = (self._of_event(index, event) for event in _events(target))
        rates = self._rates(index, target)
        order = np.argsort(rates, kind="stable")
        # Cells of equal rate are one score: their pairs count half.
        starts = np.flatnonzero(np.diff(rates[order], prepend=-1.0))
        positives = np.add.reduceat(positive[order], starts)
        return _auc(positives, np.add.reduceat(population[order], starts) - positives)

    def _of_event(self, index: int, event: Event) -> np.ndarray:
        row = self.events.index(event)
        return sum((self.cells[split][index][row] for split in self.held_out), np.zeros(self.signals[index].size))

    def _rates(self, index: int, target: Target) -> np.ndarray:
        """The target's rate in each cell of train, drawn towards the rate of all rows as by ten more rows."""
        rows, positives = self.population("train", target)
        prior = positives / max(rows, 1)
        population, positive = (self.cells["train"][index][self.events.index(e)] for e in _events(target))
        return (positive + _PRIOR_ROWS * prior) / (population + _PRIOR_ROWS)

    def _add(self, split: str, features: Features, labels: Features) -> None:
        happened = {label.name: labels[label.name][:, 0] > 0.5 for label in self.schema.labels}
        for label in self.schema.labels:
            if label.parent is not None:
                self.orphans[split][label.name] += int((happened[label.name] & ~happened[label.parent]).sum())
        every_row = np.ones(len(next(iter(happened.values()))), bool)
        masks = [np.logical_and.reduce([every_row, *(happened[name] for name in event)]) for event in self.events]
        for event, mask in zip(self.events, masks, strict=True):
            self.rows[split][event] += int(mask.sum())
        for index, signal in enumerate(self.signals):
            cells = signal.cells(features)
            for row, mask in enumerate(masks):
                chosen = cells[mask]
                np.add.at(self.cells[split][index][row], chosen[chosen != NO_CELL], 1)
            if signal.view == "list" and split != "train":
                self._score_lists(index, cells, dict(zip(self.events, masks, strict=True)))

    def _score_lists(self, index: int, cells: np.ndarray, masks: dict[Event, np.ndarray]) -> None:
        """Histograms of the held-out rows' mean rates, over evenly spaced log-odds."""
        present = cells != NO_CELL
        for target in self.schema.targets:
            rows, positives = self.population("train", target)
            rates = np.where(present, self._rates(index, target)[cells], 0.0).sum(axis=1)
            mean = np.where(present.any(axis=1), rates / np.maximum(present.sum(axis=1), 1), positives / max(rows, 1))
            odds = np.log(np.clip(mean, 1e-9, 1 - 1e-9)) - np.log1p(-np.clip(mean, 1e-9, 1 - 1e-9))
            bins = ((odds / _SCORE_RANGE + 1) / 2 * _SCORE_BINS).astype(np.int64).clip(0, _SCORE_BINS - 1)
            population, positive = (masks[event] for event in _events(target))
            counts = self._list_scores.setdefault((index, target.name), np.zeros((2, _SCORE_BINS), np.int64))
            counts[0] += np.bincount(bins[population & ~positive], minlength=_SCORE_BINS)
            counts[1] += np.bincount(bins[positive], minlength=_SCORE_BINS)


def _events(target: Target) -> tuple[Event, Event]:
    """The event that puts an impression into the target's population, and the one that makes it positive."""
    return Event(target.given), Event((*target.given, *target.positive))


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Exact AUC of scores in rising order, from the positives and negatives of each score."""
    pairs = float(positive.sum()) * float(negative.sum())
    if pairs == 0:
        return 0.5
    below = np.cumsum(negative) - negative
    return float(np.sum(positive * (below + negative / 2)) / pairs)


def _batches(dataset: Dataset, split: str) -> Iterator[tuple[Features, Features]]:
    for features, labels, _ in dataset.read(split, batch_size=_BATCH_ROWS).as_numpy_iterator():
        yield features, labels


def _value_edges(dataset: Dataset) -> list[np.ndarray]:
    """Edges of fine quantile bins of train, for each column of the packed numbers."""
    if not dataset.schema.packed_numeric:
        return []
    if dataset.rows("train") == 0:
        return [np.zeros(0, np.float32) for _ in dataset.schema.packed_numeric]
    kept: list[np.ndarray] = []
    stride, read = 1, 0
    for features, _ in _batches(dataset, "train"):
        numbers = features["numeric"]
        kept.append(numbers[-read % stride :: stride])
        read += len(numbers)
        # Every stride-th row of the whole split, however it is sorted; halved whenever there are too many.
        if sum(len(part) for part in kept) > _SAMPLE_ROWS:
            kept = [np.concatenate(kept)[::2]]
            stride *= 2
    sample = np.concatenate(kept)
    return [_edges(column) for column in sample.T]


def _edges(sample: np.ndarray) -> np.ndarray:
    values, counts = np.unique(sample, return_counts=True)
    heavy = values[counts >= len(sample) / VALUE_BINS]
    # A frequent value gets a bin that holds it alone, whatever the sample has missed beside it.
    alone = np.concatenate([heavy, np.nextafter(heavy, np.float32(np.inf))])
    return np.unique(np.concatenate([quantile_edges(sample, VALUE_BINS), alone]).astype(np.float32))


def _signals(schema: Schema, value_edges: list[np.ndarray]) -> list[Signal]:
    signals = []
    for column, feature in enumerate(schema.packed_categorical):
        if isinstance(feature, Categorical):
            signals.append(_id_signal(schema, feature, "id", _id_cells(column)))
        else:
            signals.append(Signal(feature.name, "bucket", schema.table_size(feature), _id_cells(column)))
    for column, (name, edges) in enumerate(zip(schema.packed_numeric, value_edges, strict=True)):
        view: View = "missing" if name.endswith(":missing") else "value"
        edges = np.array([0.5], np.float32) if view == "missing" else edges
        signals.append(Signal(name.removesuffix(":missing"), view, len(edges) + 1, _value_cells(column, edges)))
    for multi in schema.multis:
        signals.append(_id_signal(schema, multi, "list", _list_cells(multi)))
        signals.append(Signal(multi.name, "length", multi.max_length + 1, _length_cells(multi)))
    return signals


def _id_signal(schema: Schema, feature: Categorical, view: View, ids: Callable[[Features], np.ndarray]) -> Signal:
    """A signal of ids, folded where the table is larger than `MAX_CELLS`."""
    size, name = schema.table_size(feature), feature.name
    if size <= MAX_CELLS:
        return Signal(name, view, size, ids)
    last = MAX_CELLS - 1
    if feature.hash_buckets is None:
        # Ids rise as frequency falls, so the last cell takes the rarest.
        return Signal(name, view, MAX_CELLS, lambda features: np.minimum(ids(features), last), pooled=True)
    buckets = MAX_CELLS - FIRST_ID

    def folded(features: Features) -> np.ndarray:
        found = ids(features)
        return np.where(found < FIRST_ID, found, FIRST_ID + (found - FIRST_ID) % buckets)

    return Signal(name, view, MAX_CELLS, folded)


def _id_cells(column: int) -> Callable[[Features], np.ndarray]:
    return lambda features: features["categorical"][:, column].astype(np.int64)


def _value_cells(column: int, edges: np.ndarray) -> Callable[[Features], np.ndarray]:
    return lambda features: np.searchsorted(edges, features["numeric"][:, column], side="right")


def _list_cells(multi: MultiCategorical) -> Callable[[Features], np.ndarray]:
    return lambda features: np.where(features[multi.weights_name] != 0, features[multi.name].astype(np.int64), NO_CELL)


def _length_cells(multi: MultiCategorical) -> Callable[[Features], np.ndarray]:
    return lambda features: (features[multi.weights_name] != 0).sum(axis=1)
