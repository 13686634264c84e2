"""Trained models by name: those under `saved_models`, ready to predict and to train further."""

from __future__ import annotations

import difflib
import json
import os
import zipfile
from pathlib import Path

import keras

from mtlzoo.models.base import MultiTaskModel
from pipelines.errors import DataError

MODEL = "model.keras"
DATASET = "dataset"
_CONFIG = "config.json"


def load(name: str | Path, folder: str | Path | None = None) -> MultiTaskModel:
    """A trained model with its weights, compiled as it was trained; its optimizer starts afresh.

    Args:
        name: Name of a model under `folder` (`"dtn-small"`), or the directory of one, such as `"./mine/dtn-small"`: a
            word alone is a name, whatever holds a separator is a directory.
        folder: Where names are looked up; `None`: `saved_models` of the checkout that `mtlzoo` runs from. An installed
            package comes without models: give the folder of a checkout then.

    Returns:
        The model, compiled by its defaults where it was saved uncompiled. Its inputs are the packed features of a
        dataset that was converted like the one beside the weights: `pipelines.convert(..., like=directory_of(name) /
        "dataset")`.

    Raises:
        DataError: There is no such folder, no such model (the message lists those that there are), or its file is
            damaged.

    Example:
        >>> import mtlzoo
        >>> model = mtlzoo.models.load("dtn-small")
        >>> sorted(model.output)
        ['click', 'conversion', 'ctcvr']

    Source: our design.
    """
    path = directory_of(name, folder) / MODEL
    try:
        with zipfile.ZipFile(path) as archive:
            compilation = json.loads(archive.read(_CONFIG)).get("compile_config")
        # Compiled below: the file leaves the optimizer's moments out, which Keras would warn of.
        model = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be loaded: {first}; restore it, or build it with `make zoo`") from error
    if compilation is None:
        model.compile()
    else:
        model.compile_from_config(compilation)
    return model


def directory_of(name: str | Path, folder: str | Path | None = None) -> Path:
    """The directory of a trained model: `model.keras`, `dataset` (schema and vocabularies), versions, model card.

    Args:
        name: As for `load`.
        folder: As for `load`.

    Raises:
        DataError: There is no such folder, or no such model in it.

    Example:
        >>> from mtlzoo.models.pretrained import directory_of
        >>> directory_of("mmoe-small").name
        'mmoe-small'

    Source: our design.
    """
    if isinstance(name, Path) or any(separator in name for separator in (os.sep, os.altsep) if separator):
        directory = Path(name)
        if not (directory / MODEL).is_file():
            raise DataError(f"{directory}: holds no trained model (no {MODEL}); give the directory of one, or its name")
        return directory
    known = _known(folder)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"there is no trained model {name!r}{hint} (known: {', '.join(known)})")
    return known[name]


def _known(folder: str | Path | None) -> dict[str, Path]:
    """The directories of a folder's trained models by name.

    Raises:
        DataError: There are none.
    """
    place = Path(__file__).parents[2] / "saved_models" if folder is None else Path(folder)
    models = sorted(place.glob(f"*/{MODEL}"))
    if not models:
        raise DataError(
            f"{place}: there are no trained models here. An installed package comes without them: give "
            f"folder=DIR, the saved_models directory of a checkout of mtlzoo; in a checkout, `make zoo` builds them"
        )
    return {model.parent.name: model.parent for model in models}
