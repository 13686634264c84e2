"""What is wrong with a converted dataset, before anybody trains on it.

    leak              one feature alone tells a task's positives from its negatives
    orphan            a child label without its parent (a conversion without its click)
    dropped_rows      rows that conversion left out for that reason
    no_positives      a task with one class only in a split: nothing to learn or to measure
    few_positives     a task with so few positives in a split that its metrics are mostly chance
    empty_split       no training, no validation or no test rows
    constant          a feature with one value in the training split
    drift             a feature distributed otherwise in valid or test than in train
    label_drift       a task's rate otherwise in valid or test than in train
    out_of_vocabulary many values in valid or test that train does not have
    missing           a feature that is mostly missing
    inexact_vocabulary, sorted_rows

All measures are our design except where a source is named. Memory is bounded by the vocabularies, not by the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pipelines.check_counts import Counts, Signal
from pipelines.check_report import SEVERITIES, FeatureReport, Finding, Report, TaskCount
from pipelines.dataset import Dataset
from pipelines.schema import MISSING, OUT_OF_VOCABULARY, Categorical, MultiCategorical, Numeric, Target

# AUC of one feature alone on held-out rows. Honest features come close: on census_income the household status tells who
# never married with .978, so a warning begins above that.
LEAK_AUC, SUSPECT_AUC = 0.995, 0.98
# An error must also be certain: 95 % lower bound of that AUC. Perfect separation of 52 positives reaches it.
CERTAIN_AUC = 0.95
FEWEST_SCORED_POSITIVES = 10
FEW_POSITIVES = 100
# Population stability index: the usual limits of credit scoring (Siddiqi, Credit Risk Scorecards, 2006).
DRIFT_NOTE, DRIFT_WARNING = 0.1, 0.25
_DRIFT_CELLS, _FEWEST_EXPECTED = 300, 5.0
LABEL_DRIFT_NOTE, LABEL_DRIFT_WARNING, LABEL_DRIFT_Z = 0.1, 0.25, 4.0
OOV_NOTE, OOV_WARNING = 0.05, 0.25
MOSTLY_MISSING = 0.5
# Shards whose label rates scatter as by chance have a ratio of about 1.
UNEVEN_SHARDS, UNEVEN_RATES = 25.0, 2.0


def check(dataset: Dataset) -> Report:
    """Looks for faults of a converted dataset that conversion cannot see.

    A leak is sought by target encoding: each feature alone, as the training split's rate of its value (of its fine
    quantile bin, of the mean of its list's values, of the list's length), scores the rows of valid and test together,
    each task on its own population. Those rows had no part in the rates, so an id seen once tells nothing. Where train
    has no rows (a log converted like another dataset), leaks, drift and constant features are not looked for.

    Args:
        dataset: A converted dataset.

    Returns:
        The report.

    Raises:
        DataError: A shard cannot be read.

    Example:
        >>> report = check(pipelines.open_dataset("data/demo"))
        >>> report.worst
        'note'
        >>> [finding.message for finding in report.findings if finding.kind == "leak"]
        []
    """
    with dataset.damaged_shards_named():
        counts = Counts(dataset)
    report = Report(
        rows={split: dataset.rows(split) for split in dataset.manifest.splits},
        tasks={target.name: _task_counts(counts, target) for target in dataset.schema.targets},
        features={feature.name: _feature_report(counts, feature) for feature in dataset.schema.features},
    )
    found = [
        *_leaks(report),
        *_funnel(dataset, counts),
        *_positives(report, dataset.schema.targets),
        *_empty_splits(report),
        *_constants(counts),
        *_drifts(report),
        *_label_drifts(report),
        *_gaps(report),
        *_storage(dataset),
    ]
    report.findings.extend(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
    return report


def _task_counts(counts: Counts, target: Target) -> dict[str, TaskCount]:
    by_split = {split: counts.population(split, target) for split in counts.splits}
    return {split: TaskCount(rows, hits, hits / rows if rows else 0.0) for split, (rows, hits) in by_split.items()}


def _feature_report(counts: Counts, feature: Categorical | Numeric) -> FeatureReport:
    own = [(index, signal) for index, signal in enumerate(counts.signals) if signal.feature == feature.name]
    every_row = {split: [counts.cells[split][index][0] for index, _ in own] for split in counts.splits}
    views = [signal for _, signal in own]
    auc = {
        target.name: max(counts.held_out_auc(index, target) for index, _ in own)
        for target in counts.schema.targets
        if "train" in counts.splits
        and sum(counts.population(split, target)[1] for split in counts.held_out) >= FEWEST_SCORED_POSITIVES
    }
    return FeatureReport(
        type=feature.type,
        out_of_vocabulary=_share(every_row, views, {"id": OUT_OF_VOCABULARY, "list": OUT_OF_VOCABULARY}),
        missing=_missing_share(feature, every_row, views),
        drift={
            split: max(map(_stability_index, every_row["train"], every_row[split], views))
            for split in counts.held_out
            if "train" in counts.splits
        },
        auc=auc,
    )


def _share(every_row: dict[str, list[np.ndarray]], views: list[Signal], cells: dict[str, int]) -> dict[str, float]:
    """Share of one cell of the first view that has it, by split; empty where none has."""
    for index, signal in enumerate(views):
        if signal.view in cells:
            cell = cells[signal.view]
            return {split: float(c[index][cell] / max(c[index].sum(), 1)) for split, c in every_row.items()}
    return {}


def _missing_share(
    feature: Categorical | Numeric, every_row: dict[str, list[np.ndarray]], views: list[Signal]
) -> dict[str, float]:
    if isinstance(feature, MultiCategorical):
        return _share(every_row, views, {"length": 0})
    if isinstance(feature, Numeric) and feature.missing == "error":
        return dict.fromkeys(every_row, 0.0)
    if isinstance(feature, Numeric) and feature.missing != "mean" and not feature.indicator:
        return {}  # A missing value became an ordinary number, and its bucket an ordinary bucket.
    return _share(every_row, views, {"id": MISSING, "missing": 1, "bucket": MISSING})


def _stability_index(train: np.ndarray, other: np.ndarray, signal: Signal) -> float:
    """Population stability index: sum over cells of (p - q) ln(p / q); 0 where it is within the noise of the samples.

    Frequent cells count alone, the others together. Of ids only the frequent count: train has no value out of its own
    vocabulary, and for the same reason more of rare ones than any other split; `out_of_vocabulary` measures those.
    Without drift, the index times n m / (n + m) is about chi-squared with cells - 1 degrees of freedom (Yurdakul and
    Naranjo, 2020); the noise ends four deviations above its mean.
    """
    if signal.of_ids:
        known = slice(OUT_OF_VOCABULARY + 1, -1 if signal.pooled else None)
        train, other = train[known], other[known]
    n, m = int(train.sum()), int(other.sum())
    if n == 0 or m == 0:
        return 0.0
    both = train + other
    frequent = np.argsort(-both, kind="stable")[:_DRIFT_CELLS]
    frequent = frequent[both[frequent] * min(n, m) / (n + m) >= _FEWEST_EXPECTED]
    c, d = train[frequent], other[frequent]
    if not signal.of_ids:
        c, d = np.append(c, n - c.sum()), np.append(d, m - d.sum())
    n, m = max(int(c.sum()), 1), max(int(d.sum()), 1)
    p, q = (c + 0.5) / (n + 0.5 * len(c)), (d + 0.5) / (m + 0.5 * len(d))
    index = float(np.sum((p - q) * np.log(p / q)))
    freedom = max(len(c) - 1, 0)
    noise = (freedom + 4 * math.sqrt(2 * freedom)) * (1 / n + 1 / m)
    return index if index > noise else 0.0


def _lower_bound(share: float, trials: int) -> float:
    """Wilson's one-sided 95 % lower bound (Wilson 1927); an AUC is a mean over positives of a share of negatives."""
    z = 1.645
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (share + z * z / (2 * trials) - spread) / (1 + z * z / trials)


def _leaks(report: Report) -> Iterator[Finding]:
    for name, feature in report.features.items():
        for task, auc in feature.auc.items():
            if auc < SUSPECT_AUC:
                continue
            held_out = [count for split, count in report.tasks[task].items() if split != "train"]
            rows, positives = sum(c.rows for c in held_out), sum(c.positives for c in held_out)
            certain = _lower_bound(auc, min(positives, rows - positives)) >= CERTAIN_AUC
            chance = "" if certain else ", too few to rule out chance"
            yield Finding(
                "leak",
                "error" if auc >= LEAK_AUC and certain else "warning",
                f"{name} alone {'determines' if auc == 1.0 else 'nearly determines'} {task}: AUC {auc:.4f} over "
                f"{positives:,} positives in {rows:,} held-out rows{chance}",
                "remove the feature unless its value is known before the impression is shown (an amount, an order id "
                "or a status written afterwards is not)",
                feature=name,
                task=task,
            )


def _funnel(dataset: Dataset, counts: Counts) -> Iterator[Finding]:
    parents = {label.name: label.parent for label in dataset.schema.labels}
    for split, by_label in counts.orphans.items():
        for label, orphans in by_label.items():
            if orphans:
                yield Finding(
                    "orphan",
                    "error",
                    f"{orphans:,} rows of {split} have {label} without {parents[label]}",
                    "correct the log and convert it again, or convert with `funnel_violations: drop`",
                    task=label,
                    split=split,
                )
    dropped = dataset.manifest.dropped_rows
    if dropped:
        total = dropped + sum(dataset.rows(split) for split in dataset.manifest.splits)
        yield Finding(
            "dropped_rows",
            "warning",
            f"conversion dropped {dropped:,} of {total:,} rows ({dropped / total:.2%}) with a label but not its parent",
            "find out how the log joins the two labels: clicks may be lost or attributed to another impression",
        )


def _positives(report: Report, targets: tuple[Target, ...]) -> Iterator[Finding]:
    # A joint task has the positives of its label, of which enough is said there.
    for task in (target.name for target in targets if not target.is_joint):
        for split, count in report.tasks[task].items():
            if count.positives in (0, count.rows):
                only = "no positives" if count.positives == 0 else "no negatives"
                yield Finding(
                    "no_positives",
                    "error",
                    f"{task} has {only} among {count.rows:,} rows of {split}",
                    "take more rows, split otherwise, or leave the task out: here it is not to be measured",
                    task=task,
                    split=split,
                )
            elif count.positives < FEW_POSITIVES:
                yield Finding(
                    "few_positives",
                    "warning",
                    f"{task} has only {count.positives} positives among {count.rows:,} rows of {split}",
                    "compare models over several seeds and splits, or give this split more rows",
                    task=task,
                    split=split,
                )


def _empty_splits(report: Report) -> Iterator[Finding]:
    uses = {
        "train": "nothing can be learned from it, nor leaks and drift be looked for",
        "valid": "training cannot select or stop early",
        "test": "no model can be judged on unseen rows",
    }
    for split, rows in report.rows.items():
        if rows == 0:
            advice = "give it rows in the schema's `split` and convert again"
            yield Finding("empty_split", "warning", f"{split} has no rows: {uses[split]}", advice, split=split)


def _constants(counts: Counts) -> Iterator[Finding]:
    if "train" not in counts.splits:
        return
    several = {
        signal.feature
        for index, signal in enumerate(counts.signals)
        if np.count_nonzero(counts.cells["train"][index][0]) > 1
    }
    for feature in counts.schema.features:
        if feature.name not in several:
            rows = counts.rows["train"][frozenset()]
            message = f"{feature.name} has the same value in all {rows:,} rows of train"
            advice = "remove it, or check the column: it teaches nothing"
            yield Finding("constant", "warning", message, advice, feature=feature.name, split="train")


def _drifts(report: Report) -> Iterator[Finding]:
    for name, feature in report.features.items():
        for split, index in feature.drift.items():
            if index >= DRIFT_NOTE:
                yield Finding(
                    "drift",
                    "warning" if index >= DRIFT_WARNING else "note",
                    f"{name} is distributed otherwise in {split} than in train: population stability index {index:.2f}",
                    "check how the column is logged over time; if the change is real, expect a lower score there",
                    feature=name,
                    split=split,
                )


def _label_drifts(report: Report) -> Iterator[Finding]:
    for task, by_split in report.tasks.items():
        if "train" not in by_split:
            continue
        train = by_split["train"]
        for split, count in by_split.items():
            if split == "train" or not train.positives or not count.positives:
                continue
            change = count.rate / train.rate - 1
            pooled = (train.positives + count.positives) / (train.rows + count.rows)
            deviation = math.sqrt(pooled * (1 - pooled) * (1 / train.rows + 1 / count.rows))
            # Both: on many rows a tiny change is significant, on few a large one is chance.
            if abs(change) >= LABEL_DRIFT_NOTE and abs(count.rate - train.rate) >= LABEL_DRIFT_Z * deviation:
                yield Finding(
                    "label_drift",
                    "warning" if abs(change) >= LABEL_DRIFT_WARNING else "note",
                    f"the rate of {task} is {count.rate:.3%} in {split} but {train.rate:.3%} in train ({change:+.0%})",
                    "check whether the latest labels had time to arrive; else expect predictions off by that much",
                    task=task,
                    split=split,
                )


def _gaps(report: Report) -> Iterator[Finding]:
    for name, feature in report.features.items():
        for split, share in feature.out_of_vocabulary.items():
            if split != "train" and share >= OOV_NOTE:
                in_train = feature.out_of_vocabulary.get("train")
                beside = "" if in_train is None else f" (train: {in_train:.1%})"
                yield Finding(
                    "out_of_vocabulary",
                    "warning" if share >= OOV_WARNING else "note",
                    f"{share:.1%} of the values of {name} in {split} are out of vocabulary{beside}",
                    "lower `min_count`, raise `max_size` or use `hash_buckets`; an id that is ever new teaches little",
                    feature=name,
                    split=split,
                )
        share = feature.missing.get("train", 0.0)
        if share >= MOSTLY_MISSING:
            message = f"{name} is missing in {share:.1%} of the rows of train"
            advice = "check the join that fills it; if it is right, leave it: missing has an id of its own"
            yield Finding("missing", "note", message, advice, feature=name, split="train")


def _storage(dataset: Dataset) -> Iterator[Finding]:
    for table in dataset.manifest.inexact_vocabularies:
        yield Finding(
            "inexact_vocabulary",
            "note",
            f"the vocabulary of {table} was counted approximately: it has too many distinct values",
            "use `hash_buckets` for it, or `max_size` for a vocabulary of its most frequent values",
            feature=table,
        )
    shards = dataset.manifest.splits["train"]
    if len(shards) < 2:
        return
    rows = np.array([shard.rows for shard in shards], np.float64)
    for label in dataset.schema.labels:
        positives = np.array([shard.positives[label.name] for shard in shards], np.float64)
        rate = positives.sum() / rows.sum()
        if not 0 < rate < 1:
            continue
        scatter = np.sum((positives - rows * rate) ** 2 / (rows * rate * (1 - rate))) / (len(shards) - 1)
        rates = positives / rows
        if scatter >= UNEVEN_SHARDS and rates.max() >= UNEVEN_RATES * rates.min():
            yield Finding(
                "sorted_rows",
                "note",
                f"the rate of {label.name} goes from {rates.min():.2%} to {rates.max():.2%} over the shards of train: "
                f"its rows lie sorted",
                "train with `shuffle=True`, which mixes shards; a validation by row order would be wrong",
                task=label.name,
                split="train",
            )
