"""Tables for people: evaluations, models, datasets, findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from pipelines import Dataset, MultiCategorical, Numeric
from pipelines.schema import Categorical, Feature

METRIC_HEADINGS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log loss",
    "normalized_entropy": "normalized entropy",
    "calibration": "calibration ratio",
    "ece": "expected calibration error",
}


def evaluation_table(evaluation: dict[str, Any], title: str) -> Table:
    """One column per task, one row per metric."""
    tasks = evaluation["tasks"]
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for task in tasks:
        table.add_column(task, justify="right")
    for key, heading in METRIC_HEADINGS.items():
        table.add_row(heading, *(number(values[key]) for values in tasks.values()))
    table.add_section()
    for key in ("rows", "positives"):
        table.add_row(key, *(f"{values[key]:,}" for values in tasks.values()))
    return table


def number(value: float | None) -> str:
    """Four decimals, or a dash for what does not exist."""
    return "-" if value is None else f"{value:.4f}"


def models_table(models: dict[str, type], arguments_of: Any, presets: Mapping[str, Iterable[str]]) -> Table:
    """Each model's name, what it is, its arguments with defaults, and the names of its presets."""
    table = Table(title="models", title_justify="left", show_lines=True)
    for heading in ("name", "what it is", "arguments (--set name=value)"):
        table.add_column(heading, overflow="fold")
    for name, model in models.items():
        arguments = {k: v for k, v in arguments_of(name).items() if k not in ("name", "dtype")}
        shown = ", ".join(f"{key}={_plain(value)}" for key, value in arguments.items())
        if name in presets:
            shown += "\n\n" + ", ".join(f"preset={preset}" for preset in presets[name])
        table.add_row(name, (model.__doc__ or "").strip().splitlines()[0], shown)
    return table


def split_table(dataset: Dataset) -> Table:
    """Rows, shards, size and positives of each split."""
    manifest = dataset.manifest
    form = manifest.layout if manifest.compression == "none" else f"{manifest.layout}, {manifest.compression}"
    table = Table(title=f"{dataset.folder} ({form})", title_justify="left")
    table.add_column("split")
    labels = [label.name for label in dataset.schema.labels]
    for heading in ("rows", "shards", "MB", *labels):
        table.add_column(heading, justify="right")
    for split, shards in dataset.manifest.splits.items():
        rows = dataset.rows(split)
        positives = dataset.manifest.positives(split)
        shares = [_share(positives.get(label, 0), rows) for label in labels]
        size = sum(shard.bytes for shard in shards) / 1e6
        table.add_row(split, f"{rows:,}", str(len(shards)), f"{size:,.1f}", *shares)
    return table


def feature_table(dataset: Dataset) -> Table:
    """What each feature is, and how many rows its embedding table has."""
    table = Table(title="features", title_justify="left")
    table.add_column("feature", overflow="fold", min_width=24)
    table.add_column("kind")
    table.add_column("embeddings", justify="right")
    table.add_column("details")
    for feature in dataset.schema.features:
        has_table = isinstance(feature, Categorical) or feature.buckets is not None
        size = f"{dataset.schema.table_size(feature):,}" if has_table else "-"
        table.add_row(feature.name, _kind(feature), size, _details(feature))
    return table


def findings_table(report: Any) -> Table:
    """What `check` found, worst first."""
    colours = {"error": "red", "warning": "yellow", "note": "cyan"}
    table = Table(title="findings", title_justify="left", show_lines=True)
    for heading in ("severity", "finding", "what to do"):
        table.add_column(heading)
    for finding in report.findings:
        table.add_row(f"[{colours[finding.severity]}]{finding.severity}[/]", finding.message, finding.advice)
    return table


def _kind(feature: Feature) -> str:
    if isinstance(feature, Numeric):
        return "numeric"
    kind = "list of " if isinstance(feature, MultiCategorical) else ""
    return f"{kind}{feature.dtype}"


def _details(feature: Feature) -> str:
    if isinstance(feature, Numeric):
        parts = [f"{feature.buckets} buckets"] if feature.buckets else []
        parts += [feature.transform] if feature.transform != "none" else []
        parts += ["standardized"] if feature.has_value and feature.standardize else []
        parts += [f"missing: {feature.missing}"] if feature.missing != "error" else []
        return ", ".join(parts)
    parts = [f"table {feature.table}"] if feature.table else []
    parts += [f"{feature.hash_buckets:,} hash buckets"] if feature.hash_buckets else []
    if isinstance(feature, MultiCategorical):
        parts += [f"{feature.combiner} of the {feature.keep} {feature.max_length}"]
        parts += [f"weighted by {feature.weights}"] if feature.weights else []
    return ", ".join(parts)


def _share(count: int, rows: int) -> str:
    return f"{count:,} ({count / rows:.2%})" if rows else "0"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
