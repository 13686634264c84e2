"""Whether an export will be served as it should: what TF Serving refuses, and what it would serve wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from mtlzoo.serving.cpp_loader import load_as_tf_serving
from mtlzoo.serving.model_card import EXTRA, MODEL_CARD, read_model_card
from mtlzoo.serving.servables import versions_of
from mtlzoo.serving.verify_batching import batching_check
from mtlzoo.serving.verify_equality import (
    DEFAULT,
    agreement_check,
    finite_check,
    optional_check,
    requests_of,
    training_check,
)
from mtlzoo.serving.verify_files import Check, file_checks, read_graph, signature_checks, signatures_of
from mtlzoo.serving.verify_model import Arrays, LoadedModel, first_line, warmup_check
from mtlzoo.serving.verify_rows import Rows, rows_of_dataset, rows_of_files
from mtlzoo.training import Run
from pipelines import DataError, Dataset

__all__ = ["Check", "verify", "version_of"]

ROWS = 512


def verify(
    path: str | Path,
    dataset: Dataset | None = None,
    rows: int = ROWS,
    run: Run | None = None,
    raw: Sequence[str | Path] = (),
) -> list[Check]:
    """Checks an exported version.

    Without data: the directory, the variables, the signatures' declarations, the C++ loader that TF Serving calls, the
    replay of the warmup records, and, on the rows of these records, that no answer depends on the rest of its batch.
    With a dataset these rows are real ones, and all signatures must agree on them. With a run `serving_default` must
    also answer raw rows as the trained model answers the encoded ones, |difference| <= 1e-5 (not held against an export
    whose card says that it was quantized or calibrated).

    Answers of a row in two batches may differ by 1e-5 of their size: matrix products of other shapes add up in another
    order. A leak of another row's values, or of padding, is larger.

    Args:
        path: A version directory, or a servable, of which the highest version is checked.
        dataset: The dataset of the model.
        rows: At most this many rows are tried.
        run: The run that was exported; its dataset is taken where none is given.
        raw: Raw files whose first rows are tried; none: rows of the dataset, computed back to raw values.

    Returns:
        The checks in a fixed order. `ok` is `None` where something could not be checked.

    Raises:
        DataError: There is no version, or the dataset or raw files are not those of the export.
        ValueError: `rows` is not positive.

    Source:
        Our design.

    Example:
        >>> checks = verify("saved_models/mmoe", open_dataset("data/demo"))
        >>> [check.name for check in checks if check.ok is False]
        []
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, is {rows}")
    version = version_of(path)
    dataset = run.dataset() if dataset is None and run is not None else dataset
    if raw and dataset is None:
        raise DataError("raw rows need the dataset that they were converted into, for its vocabularies")
    graph, graph_check = read_graph(version)
    checks = [graph_check, *file_checks(version, graph)]
    if graph is None:
        return checks
    checks += signature_checks(signatures_of(graph))
    card_check, card = _card_check(version)
    checks += [card_check, _loader_check(version)]
    try:
        model = LoadedModel(version)
    except (tf.errors.OpError, OSError, ValueError) as error:
        return [*checks, Check("session", False, f"the model does not load: {first_line(error)}")]
    try:
        tried = None if dataset is None else _rows(model, version, card, dataset, [Path(file) for file in raw], rows)
        return [*checks, *_answer_checks(model, version, tried, run, card)]
    finally:
        model.close()


def version_of(path: str | Path) -> Path:
    """The version directory that a path means: itself, or the highest version of a servable.

    Raises:
        DataError: There is no such directory.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such directory; give a version or its servable")
    if (path / "saved_model.pb").is_file():
        return path
    return next(reversed(versions_of(path).values()), path)


def _loader_check(version: Path) -> Check:
    try:
        load_as_tf_serving(version)
    except DataError as error:
        return Check("C++ loader", False, str(error).removeprefix(f"{version}: "))
    return Check("C++ loader", True, "loads it with the tag 'serve'")


def _card_check(version: Path) -> tuple[Check, dict[str, Any]]:
    """The model card; empty where there is none."""
    if not (version / EXTRA / MODEL_CARD).is_file():
        return Check("model card", None, "there is none: nothing says what was exported"), {}
    try:
        card = read_model_card(version)
    except DataError as error:
        return Check("model card", False, str(error)), {}
    day = f" of {card['created']}" if card.get("created") else ""
    return Check("model card", True, f"{card.get('model')}{day}"), card


def _rows(
    model: LoadedModel, version: Path, card: dict[str, Any], dataset: Dataset, raw: Sequence[Path], rows: int
) -> Rows:
    seen = [f.name for f in dataset.schema.features if f.name in model.signatures[DEFAULT].inputs]
    if 0 < len(seen) < len(dataset.schema.features):
        dataset = dataset.select(seen)
    digest = card.get("data", {}).get("schema_digest", dataset.schema.digest())
    if digest != dataset.schema.digest():
        raise DataError(f"{dataset.folder}: the card of {version} says that it was exported of another dataset")
    return rows_of_files(dataset, raw, rows) if raw else rows_of_dataset(dataset, rows)


def _answer_checks(
    model: LoadedModel, version: Path, rows: Rows | None, run: Run | None, card: dict[str, Any]
) -> Iterator[Check]:
    check, recorded = warmup_check(model, version)
    yield check
    requests: dict[str, Arrays] = recorded
    if rows is not None:
        requests = recorded | requests_of(model, rows.request)
    yield finite_check(model, requests)
    yield optional_check(model, requests)
    for signature in model.signatures:
        if signature in requests:
            yield batching_check(model, signature, requests[signature])
        else:
            yield Check(f"batching {signature}", None, "no rows: there is no warmup record and no --data")
    if rows is None:
        yield Check("signatures agree", None, "no rows: give --data")
        return
    yield agreement_check(model, requests_of(model, rows.request))
    if run is None:
        yield Check("training path", None, "not compared with the trained model: give --run")
    else:
        yield training_check(model, rows, run, card)
