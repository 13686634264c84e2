"""Builds the models of a plan: data, training, export, checks, cards, and each finished one into its place.

What is finished stays in the working directory until all is: an interrupted build goes on behind the last finished
epoch, and does not build a finished model again.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mtlzoo.cli.console import phase_progress, row_progress
from mtlzoo.cli.training_progress import train_with_progress
from mtlzoo.models.pretrained import DATASET, MODEL
from mtlzoo.serving import export, request_of, verify
from mtlzoo.serving.model_card import EXTRA, MODEL_CARD, read_model_card
from mtlzoo.serving.verify_model import LoadedModel
from mtlzoo.training import Run, evaluate, open_run
from mtlzoo.training.run import METRICS, read_json, write_json
from mtlzoo.zoo.card import render
from mtlzoo.zoo.keras_file import write_keras_file
from mtlzoo.zoo.plan import MOST_BYTES, Plan
from pipelines import DataError, Dataset, convert, load_schema, open_dataset, save_schema
from pipelines.manifest import MANIFEST, SCHEMA, VOCABULARIES, Manifest
from pipelines.raw import read_raw
from pipelines.replace import put_back, replace_directory, set_aside
from pipelines.synthetic import WORLD, SyntheticFunnel
from pipelines.synthetic_truth import LOG, TRUTH, best_auc_of_split

VERSION = "1"
PAGE = "README.md"
_MARKER = "mtlzoo-zoo-plan.json"
_STAGED = ".building"  # TF Serving and `mtlzoo serve` look for versions one level below a servable, not deeper

Evaluations = dict[str, tuple[dict[str, Any] | None, dict[str, Any]]]


def build(plan: Plan, names: Sequence[str], out: Path, work: Path, say: Callable[[str], None]) -> Evaluations:
    """Builds models and puts each into its place when it is finished.

    Args:
        plan: What to build.
        names: Which of the plan's models.
        out: Gets a directory for each model; an older one is replaced as a whole.
        work: Where data, runs and unfinished models lie meanwhile; removed when all are built.
        say: Called with a line for each step.

    Returns:
        By model, the test evaluation of the one that was there (`None`: none was) and of the new one.

    Raises:
        DataError: An unknown name, a check that fails, a model that is too large, or `work` is something else.

    Example:
        >>> build(Plan(), ["mmoe-small"], Path("saved_models"), Path("runs/zoo"), print)

    Source: our design.
    """
    unknown = [name for name in names if name not in plan.recipes]
    if unknown:
        raise DataError(f"there is no model {unknown[0]!r} in the zoo (known: {', '.join(plan.recipes)})")
    _open_work(work, plan)
    dataset, sample = _datasets(plan, work, say)
    best = best_auc_of_split(work / "raw", "test")
    results = {}
    for name in names:
        place, done = out / name, work / f"{name}.json"
        put_back(place)
        staged = out / _STAGED / name
        if not done.is_file():
            old = _test_metrics(place)
            shutil.rmtree(staged, ignore_errors=True)
            run = _trained(plan, name, work, say)
            say(f"{name}: evaluating, exporting, verifying")
            _stage(plan, name, run, dataset, sample, best, staged)
            write_json(done, {"old": old, "new": _test_metrics(staged)})
        if staged.is_dir():
            replace_directory(staged, place)
            say(f"{name}: {place}, {_size(place) / 1e6:.2f} MB")
        else:
            shutil.rmtree(set_aside(place), ignore_errors=True)
            say(f"{name}: {place} is finished already")
        found = read_json(done)
        results[name] = (found["old"], found["new"])
    shutil.rmtree(out / _STAGED, ignore_errors=True)
    shutil.rmtree(work)
    return results


def write_pages(out: Path) -> list[Path]:
    """Writes the pages anew from the cards, without building anything: for a change of their text.

    Args:
        out: Where the models lie.

    Returns:
        The pages.

    Raises:
        DataError: A card cannot be read.

    Example:
        >>> write_pages(Path("saved_models"))[0]
        PosixPath('saved_models/dcrnn-small/README.md')

    Source: our design.
    """
    pages = []
    for model in sorted(out.glob(f"*/{MODEL}")):
        page = model.with_name(PAGE)
        page.write_text(render(read_model_card(model.parent / VERSION)), encoding="utf-8")
        pages.append(page)
    return pages


def _open_work(work: Path, plan: Plan) -> None:
    """Work on the same plan goes on; that on another is begun anew."""
    marker, description = work / _MARKER, plan.description()
    if marker.is_file():
        if read_json(marker) == json.loads(json.dumps(description)):
            return
        shutil.rmtree(work)
    elif work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise DataError(f"{work}: exists and is no work of this program; choose another directory with --work")
    work.mkdir(parents=True, exist_ok=True)
    write_json(marker, description)


def _datasets(plan: Plan, work: Path, say: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    """The dataset of the whole log, and that of its first impressions, converted like it."""
    for folder, rows in (("raw", plan.rows), ("raw-sample", plan.sample_rows)):
        if not (work / folder / WORLD).is_file():
            say(f"{rows:,} synthetic impressions into {work / folder}")
            _draw(plan, work / folder, rows)
    for folder, raw, like in (("small", "raw", None), ("sample", "raw-sample", work / "small")):
        if not (work / folder / MANIFEST).is_file():
            say(f"converting into {work / folder}")
            phases = {"fit": "fitting vocabularies", "count": "counting rows", "write": "writing shards"}
            schema = None if like else load_schema(work / raw / SCHEMA)
            with phase_progress(phases) as progress:
                convert([work / raw / LOG], schema, work / folder, progress=progress, like=like)
    return open_dataset(work / "small"), open_dataset(work / "sample")


def _draw(plan: Plan, folder: Path, rows: int) -> None:
    with row_progress("writing impressions") as progress:
        SyntheticFunnel("small", seed=plan.seed).write(folder, rows, progress=lambda done: progress(done, rows))


def _trained(plan: Plan, name: str, work: Path, say: Callable[[str], None]) -> Run:
    folder, config = work / "runs" / name, plan.config(name, work / "small")
    if (folder / METRICS).is_file():
        run = open_run(folder)
        if run.config == config:
            say(f"{name}: is trained already")
            return run
    say(f"{name}: training")
    return train_with_progress(config, folder)


def _stage(
    plan: Plan, name: str, run: Run, dataset: Dataset, sample: Dataset, best: dict[str, float], staged: Path
) -> None:
    """Fills the directory of a model.

    Raises:
        DataError: The export fails a check, or the directory is too large.
    """
    model = run.model()
    metrics = {
        "best_epoch": run.metrics["best_epoch"],
        "trained_epochs": len(run.history),
        "valid": run.metrics["valid"],
        "test": evaluate(model, dataset, "test"),
        "best_reachable": {task: None if math.isnan(auc) else auc for task, auc in best.items()},
        "sample": evaluate(model, sample, "test"),
    }
    version = export(model, staged, dataset, int(VERSION), metrics, score=plan.score, top_k=plan.top_k)
    failed = [f"{check.name}: {check.detail}" for check in verify(version, dataset, run=run) if check.ok is False]
    if failed:
        raise DataError(f"{name}: the export fails {len(failed)} checks: {'; '.join(failed)}")
    write_keras_file(model, staged / MODEL)
    _write_empty_dataset(dataset, staged / DATASET)
    raw = run.folder.parents[1] / "raw-sample"
    card = _card(plan, name, dataset, version, _example(dataset, version, raw))
    (version / EXTRA / MODEL_CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (staged / PAGE).write_text(render(card), encoding="utf-8")
    size = _size(staged)
    if size > MOST_BYTES:
        raise DataError(
            f"{name}: {size:,} bytes, at most {MOST_BYTES:,} are wanted; make it smaller in mtlzoo/zoo/plan.py"
        )


def _write_empty_dataset(dataset: Dataset, folder: Path) -> None:
    """A dataset without impressions: what it takes to convert others like it."""
    folder.mkdir()
    shutil.copytree(dataset.folder / VOCABULARIES, folder / VOCABULARIES)
    save_schema(dataset.schema, folder / SCHEMA)
    empty: dict[str, tuple] = dict.fromkeys(dataset.manifest.splits, ())
    manifest = Manifest(
        layout=dataset.manifest.layout,
        schema_digest=dataset.manifest.schema_digest,
        sources=dataset.manifest.sources,
        dropped_rows=0,
        inexact_vocabularies=dataset.manifest.inexact_vocabularies,
        splits=empty,
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def _card(plan: Plan, name: str, dataset: Dataset, version: Path, example: dict[str, Any]) -> dict[str, Any]:
    """The export's card with what the zoo knows besides, and without the day: the same build gives the same file."""
    card = read_model_card(version)
    del card["created"]
    recipe = plan.recipes[name]
    card["zoo"] = {
        "recipe": {
            "model": recipe.model,
            "arguments": recipe.arguments,
            "why": recipe.why,
            "training": plan.training,
        },
        "data": {
            "preset": "small",
            "seed": plan.seed,
            "rows": plan.rows,
            "sample_rows": plan.sample_rows,
            "positives": {split: dataset.manifest.positives(split) for split in dataset.manifest.splits},
        },
        "example": example,
        "bytes": {part: _size(version.parent / part) for part in (VERSION, DATASET, MODEL)},
    }
    return card


def _example(dataset: Dataset, version: Path, raw: Path) -> dict[str, Any]:
    """A whole row of the log, what the export says of it, and what is true of it."""
    batch = next(read_raw([raw / LOG], dataset.schema, batch_rows=256)).batch
    request = request_of(dataset.schema, batch)
    row = next(i for i in range(batch.num_rows) if all(_is_given(values[i]) for values in request.values()))
    lengths = {key: int(request[f"{key}_length"][row]) for key in request if f"{key}_length" in request}
    given = {key: values[row : row + 1] for key, values in request.items()}
    given |= {key: given[key][:, :length] for key, length in lengths.items()}
    model = LoadedModel(version)
    answers = model.run("serving_default", given)
    model.close()
    truth = pq.read_table(raw / TRUTH)
    return {
        "inputs": {key: _plain(values) for key, values in given.items()},
        "answers": {target.name: float(answers[target.name][0]) for target in dataset.schema.targets},
        "true": {target.name: truth[f"p_{target.name}"][row].as_py() for target in dataset.schema.targets},
    }


def _is_given(value: Any) -> bool:
    """Whether a value of a request is neither missing nor an empty list's length."""
    if isinstance(value, np.ndarray):
        return bool(value[0] != "")
    return value != "" and value == value and value != 0 and value != np.iinfo(np.int64).min


def _plain(values: np.ndarray) -> list[Any]:
    """Plain data, numbers as short as float32 has them."""
    if values.dtype.kind == "f":
        return [float(str(value)) for value in values]
    return values.tolist()


def _test_metrics(folder: Path) -> dict[str, Any] | None:
    """The test evaluation of a model that is there; `None`: there is none, or its card is of another kind."""
    if not (folder / VERSION / EXTRA / MODEL_CARD).is_file():
        return None
    return read_model_card(folder / VERSION)["metrics"].get("test")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
