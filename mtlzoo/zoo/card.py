"""The model card for people, made of the one for programs (`model_card.json` of the export)."""

from __future__ import annotations

import json
import textwrap
from typing import Any

_WIDTH = 120

_PAGE = """# {name}

{kind} with {parameters:,} weights, trained on synthetic impressions whose true probabilities are known: it predicts
whether an impression is clicked, and whether the click converts. {megabytes:.1f} MB in all. `make zoo` wrote this page:
change the program (`mtlzoo/zoo`) instead.

{source}

## Data

The preset `small` of the synthetic generator: 14 features (users, items, a list, numbers, missing values), {rows:,}
impressions.

```
mtlzoo data synth data/raw --rows {rows} --seed {seed}
mtlzoo data convert data/raw/impressions.parquet --schema data/raw/schema.yaml --out data/small
```

{splits}

The fitted schema has the digest `{digest}`, into which vocabularies, means, deviations and bucket edges enter.

## Protocol

- Split by a hash of the impression's id. Vocabularies and statistics are fitted on the training split.
- At most {epochs} epochs; {patience} without a smaller validation loss ends training. The epoch of the smallest stays,
  number {best_epoch} of the {trained_epochs} that were trained. The test split decides nothing.
- One seed ({training_seed}) of weights, order and dropout. Nothing was tuned on this log.
{settings}

```
{command}
```

## Test metrics

{metrics}

The best reachable AUC is that of the true probabilities on the same rows; the share is that of the way there from 0.5.
Conversion is measured on clicked impressions. {positives} conversions are few: the standard error of an AUC over them
is at most {error:.3f}.

## Calibration

{calibration}

Expected is the sum of the probabilities. The calibration error is the mean distance between predicted and observed rate
over 15 bins of equal size; a perfect model has some by chance.

## Load and fine-tune

In a checkout of the repository, or with `folder=` the directory that holds `{name}`:

```python
import pipelines
from mtlzoo.models import load
from mtlzoo.models.pretrained import directory_of

model = load("{name}")  # a keras.Model, compiled as it was trained
pipelines.convert(["my-log.parquet"], out="data/mine", like=directory_of("{name}") / "dataset")
mine = pipelines.open_dataset("data/mine")
model.fit(mine.read("train", 2048, shuffle=True), validation_data=mine.read("valid"), epochs=1)
```

## Query

```
mtlzoo serve saved_models        # or TF Serving
curl -sS http://127.0.0.1:8501/v1/models/{name}:predict -d '{request}'
```

```python
from mtlzoo.serving import Client

row = {python}
with Client("127.0.0.1:8500", "{name}") as client:
    answer = client.predict(row)
```

{answers}

The signatures `ranking` and `ranking_top_k` (the best {top_k} candidates) score by `{formula}`.
`1/assets.extra/model_card.json` has every signature and all numbers of this page.

## Files

{files}

## What it is not

A model for anybody's own impressions: its users, items and effects are made up. It is there to be queried, served,
inspected and trained further before there is a model of one's own, and it shows what this kind of model reaches where
the best is known. Trained with {versions}.
"""


def render(card: dict[str, Any]) -> str:
    """The page of a model of the zoo, Markdown.

    Args:
        card: What `mtlzoo.serving.model_card.read_model_card` reads of its version.

    Example:
        >>> from mtlzoo.models.pretrained import directory_of
        >>> from mtlzoo.serving.model_card import read_model_card
        >>> folder = directory_of("mmoe-small")
        >>> render(read_model_card(folder / "1")) == (folder / "README.md").read_text()
        True

    Source: our design.
    """
    zoo, metrics = card["zoo"], card["metrics"]
    recipe, training = zoo["recipe"], zoo["recipe"]["training"]
    tasks = list(metrics["test"]["tasks"].values())
    return _PAGE.format(
        name=card["name"],
        kind=card["model"],
        source=textwrap.fill(f"Source of the model: {card['source']}", _WIDTH) if card.get("source") else "",
        parameters=card["parameters"],
        megabytes=sum(zoo["bytes"].values()) / 1e6,
        rows=zoo["data"]["rows"],
        seed=zoo["data"]["seed"],
        splits=_splits(card),
        digest=card["data"]["schema_digest"],
        epochs=training["epochs"],
        patience=training["patience"],
        best_epoch=metrics["best_epoch"],
        trained_epochs=metrics["trained_epochs"],
        training_seed=training["seed"],
        settings=_settings(recipe),
        command=_command(card),
        metrics=_metrics(metrics),
        positives=tasks[-1]["positives"],
        error=max(_standard_error(values) for values in tasks),
        calibration=_calibration(metrics["test"]["tasks"]),
        request=json.dumps({"inputs": zoo["example"]["inputs"]}),
        python=json.dumps(zoo["example"]["inputs"]),
        answers=_answers(zoo["example"]),
        top_k=card["top_k"],
        formula=card["score"]["formula"],
        files=_files(zoo["bytes"]),
        versions=", ".join(f"{package} {version}" for package, version in card["versions"].items()),
    )


def _settings(recipe: dict[str, Any]) -> str:
    arguments = ", ".join(f"`{key}={_setting(value)}`" for key, value in recipe["arguments"].items())
    text = f"- What differs from the defaults of the model: {arguments}: {recipe['why']}."
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _table(heading: list[str], rows: list[list[str]], last: str = "---:") -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 2), last], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _splits(card: dict[str, Any]) -> str:
    positives = card["zoo"]["data"]["positives"]
    labels = list(next(iter(positives.values())))
    rows = [
        [split, f"{count:,}", *(f"{positives[split][label]:,}" for label in labels)]
        for split, count in card["data"]["rows"].items()
    ]
    return _table(["split", "impressions", *labels], rows)


def _metrics(metrics: dict[str, Any]) -> str:
    best = metrics["best_reachable"]
    rows = []
    for task, values in metrics["test"]["tasks"].items():
        share = (values["auc"] - 0.5) / (best[task] - 0.5) if values["auc"] is not None else None
        rows.append(
            [
                task,
                _number(values["auc"]),
                _number(best[task]),
                "-" if share is None else f"{share:.1%}",
                *(_number(values[key]) for key in ("gauc", "log_loss", "normalized_entropy")),
                f"{values['rows']:,}",
                f"{values['positives']:,}",
            ]
        )
    heading = ["task", "AUC", "best reachable AUC", "share", "GAUC (by user)", "log loss", "normalized entropy"]
    return _table([*heading, "rows", "positives"], rows)


def _calibration(tasks: dict[str, Any]) -> str:
    rows = []
    for task, values in tasks.items():
        ratio = values["calibration"]
        expected = "-" if ratio is None else f"{ratio * values['positives']:,.1f}"
        error = "-" if values["ece"] is None else f"{values['ece']:.5f}"
        rows.append([task, expected, f"{values['positives']:,}", _number(ratio), error])
    return _table(["task", "expected", "observed", "ratio", "expected calibration error"], rows)


def _answers(example: dict[str, Any]) -> str:
    rows = [[task, f"{p:.5f}", f"{example['true'][task]:.5f}"] for task, p in example["answers"].items()]
    return _table(["of this impression", "the model says", "true probability"], rows)


def _files(sizes: dict[str, int]) -> str:
    what = {
        "1": "version 1 of the SavedModel, for TF Serving: signatures, lookups, warmup records, `model_card.json`",
        "dataset": "fitted schema and vocabularies, for `convert(..., like=...)`; no impressions",
        "model.keras": "the Keras model with its weights, without the moments of its optimizer",
    }
    return _table(
        ["file", "MB", "what it is"], [[f"`{f}`", f"{n / 1e6:.2f}", what[f]] for f, n in sizes.items()], "---"
    )


def _command(card: dict[str, Any]) -> str:
    """What trains the same model on the command line."""
    recipe, training = card["zoo"]["recipe"], dict(card["zoo"]["recipe"]["training"])
    words = [f"mtlzoo train {recipe['model']} --data data/small --out runs/{card['name']}"]
    words += [f"--{key.replace('_', '-')} {training.pop(key)}" for key in ("epochs", "batch_size", "seed")]
    words += [f"--set {key}={value}" for key, value in training.items()]
    words += [f"--set '{key}={_setting(value)}'" for key, value in recipe["arguments"].items()]
    return " \\\n    ".join(words)


def _setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).replace("'", "")


def _standard_error(values: dict[str, Any]) -> float:
    """The most that it can be, `sqrt(A (1 - A) / positives)`; Birnbaum and Klose (1957), positives being the fewer."""
    auc = values["auc"]
    return 0.0 if auc is None else (auc * (1.0 - auc) / values["positives"]) ** 0.5


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
