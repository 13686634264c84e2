"""What `pipelines.check` reports: findings, and the numbers behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: Which check (see `pipelines.check`).
        severity: `"error"` (do not train on this), `"warning"` or `"note"`.
        message: What was found, with its numbers, in one sentence.
        advice: What to do about it.
        feature: The feature, if it is about one.
        task: The task, if it is about one.
        split: The split, if it is about one.
    """

    kind: str
    severity: Severity
    message: str
    advice: str
    feature: str | None = None
    task: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class TaskCount:
    """A task in a split: the rows of its population, the positives among them, their share."""

    rows: int
    positives: int
    rate: float


@dataclass(frozen=True)
class FeatureReport:
    """What was measured of a feature.

    Attributes:
        type: Its type in the schema.
        out_of_vocabulary: Share of values that train's vocabulary lacks, by split; empty for a number.
        missing: Share of missing values (of empty lists), by split; empty where the records do not say.
        drift: Population stability index against train, by split; 0 where it is within the noise of the samples.
        auc: AUC of this feature alone on held-out rows, by task; without the tasks with too few positives.
    """

    type: str
    out_of_vocabulary: dict[str, float]
    missing: dict[str, float]
    drift: dict[str, float]
    auc: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Findings, the gravest first, and the numbers behind them.

    Attributes:
        rows: Impressions by split.
        tasks: By task and split.
        features: By feature.
        findings: What to look at.
    """

    rows: dict[str, int]
    tasks: dict[str, dict[str, TaskCount]]
    features: dict[str, FeatureReport]
    findings: list[Finding] = field(default_factory=list)

    @property
    def worst(self) -> Severity | None:
        """The gravest severity found; `None` if nothing was."""
        return self.findings[0].severity if self.findings else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"worst": self.worst, **asdict(self)}
