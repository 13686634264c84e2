"""What `mtlzoo train --profile` shows: where the time of a step goes, and what to do about the largest part."""

from __future__ import annotations

from typing import Any

import keras
from rich.table import Table

from mtlzoo.cli.console import err, out, phase_progress
from mtlzoo.training import RunConfig, profile
from mtlzoo.training.run import dataset_of
from pipelines import Dataset

_PHASES = {profile.STEPS: "profiling steps", profile.INPUT_ALONE: "profiling the input alone"}

PART_HEADINGS = {
    profile.INPUT: "waiting for input",
    profile.LOOKUPS: "lookups: rows, and sums of their gradients",
    profile.DENSE: "dense: forward and backward",
    profile.OPTIMIZER_DENSE: "optimizer: dense weights",
    profile.OPTIMIZER_ROWS: "optimizer: rows of tables",
    profile.METRICS: "metrics",
    profile.REST: "the rest: scheduling, Python, callbacks",
}

_LARGER_BATCH = "a larger --batch-size (fewer steps an epoch, so compare the validation values)"
_ADVICE = {
    profile.LOOKUPS: "it grows with the ids of an impression and the width of embeddings: narrower embeddings (--set "
    "embedding_dim=N), shorter lists (max_length in the schema), fewer features (--set without=NAME)",
    profile.DENSE: "fewer or narrower layers; `mtlzoo models` lists the arguments",
    profile.OPTIMIZER_DENSE: f"it costs the same at every step, however many impressions that has: {_LARGER_BATCH}, or "
    "fewer weights",
    profile.OPTIMIZER_ROWS: "it grows with the different rows that a batch names: narrower embeddings (--set "
    f"embedding_dim=N), or {_LARGER_BATCH}, whose impressions share more rows",
    profile.METRICS: f"an AUC of every task is computed at every step, at a cost that hardly depends on the batch: "
    f"{_LARGER_BATCH}",
    profile.REST: f"it grows with the number of operations, not with impressions: {_LARGER_BATCH}",
}


def show_profile(config: RunConfig) -> dict[str, Any]:
    """Profiles a training on a copy, with progress, and prints the result.

    Returns:
        What `profile.json` holds: `TrainingProfile.to_dict`, and `advice`.
    """
    with phase_progress(_PHASES) as progress:
        found = profile.profile_training(config, progress)
    # The copy goes, and its layers' names with it: the training's layers get those that they would have had.
    keras.utils.clear_session()
    out.print(profile_table(found))
    advice = advise(found.step, dataset_of(config))
    err.print(
        f"{found.impressions_per_second:,.0f} impressions/s now; the input alone delivers "
        f"{found.input_impressions_per_second:,.0f}, and an epoch's first batch after {found.first_batch_seconds:.1f} s"
        f"\n{advice}",
        highlight=False,
        soft_wrap=True,
    )
    return {**found.to_dict(), "advice": advice}


def profile_table(found: profile.TrainingProfile) -> Table:
    """A row for each part of the step: milliseconds and share."""
    step = found.step
    title = f"a step of {found.config.model}, batch size {found.config.batch_size:,} (mean of {step.steps})"
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for part, share in step.shares.items():
        style = "bold" if part == step.largest else None
        table.add_row(PART_HEADINGS[part], f"{share * step.step_ms:.2f}", f"{share:.1%}", style=style)
    table.add_section()
    table.add_row("a step", f"{step.step_ms:.2f}", "100.0%")
    return table


def advise(step: profile.StepProfile, dataset: Dataset) -> str:
    """One sentence: the largest part of the step, and what makes it smaller."""
    advice = _about_input(dataset) if step.largest == profile.INPUT else _ADVICE[step.largest]
    return f"largest part: {PART_HEADINGS[step.largest].replace(':', ',')} ({step.shares[step.largest]:.0%}); {advice}"


def _about_input(dataset: Dataset) -> str:
    if dataset.manifest.layout == "rows":
        return "convert the log with --layout blocks, which is read an order of magnitude faster"
    if len(dataset.manifest.splits["train"]) == 1:
        return "convert the log with more --shards: two are read at a time, and the training split has one"
    return "leave out features that the model can do without (--set without=NAME): they are not parsed"
