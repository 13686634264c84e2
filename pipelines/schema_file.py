"""Reads and writes `schema.yaml`; an error names the file, the field and the value."""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipelines import schema as declarations
from pipelines.errors import DataError
from pipelines.schema import Schema


def load_schema(path: str | Path) -> Schema:
    """Reads a schema from a YAML file.

    Args:
        path: The file.

    Returns:
        The validated schema.

    Raises:
        DataError: The file is missing, is not YAML, or declares something that cannot be; the message has one line per
            fault, each with the field and the value found.

    Example:
        >>> schema = load_schema("data/demo/schema.yaml")
        >>> [label.name for label in schema.labels]
        ['click', 'conversion']
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such schema file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: a schema is a mapping with the keys features, labels and split; found {_short(data)}")
    try:
        return Schema.model_validate(data)
    except ValidationError as error:
        faults = "\n".join(f"{path}: {_describe(fault, data)}" for fault in error.errors())
        raise DataError(faults) from None


def save_schema(schema: Schema, path: str | Path) -> None:
    """Writes a schema as YAML, in the order of its declaration."""
    plain = schema.to_dict()
    text = _as_yaml(plain, allow_unicode=True)
    if yaml.safe_load(text) != plain:
        # PyYAML writes some characters (U+0085) as they are and reads them back as line ends.
        text = _as_yaml(plain, allow_unicode=False)
    Path(path).write_text(text, encoding="utf-8")


def _as_yaml(plain: dict[str, Any], allow_unicode: bool) -> str:
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=allow_unicode, width=120, default_flow_style=None)


def _describe(fault: Any, data: dict[str, Any]) -> str:
    # Pydantic puts the tag of a union into the location; it is no field of the file.
    tags = {"categorical", "multi_categorical", "numeric", "files", "time", "hash"}
    location = [part for i, part in enumerate(fault["loc"]) if not (i and part in tags)]
    where = _path_in_words(location, data)
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        key = str(location[-1])
        known = _known_keys(fault["loc"])
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key {key!r}{hint} (known: {', '.join(known)})"
    if fault["type"] == "missing":
        return f"{where}: missing"
    shown = "" if isinstance(fault["input"], dict | list) else f"; found {_short(fault['input'])}"
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def _path_in_words(location: list[Any], data: Any) -> str:
    words = []
    for part in location:
        data = data[part] if isinstance(data, dict | list) and _holds(data, part) else None
        name = data.get("name") if isinstance(data, dict) else None
        words.append(f"{part} ({name})" if name is not None else str(part))
    return ".".join(words)


def _holds(data: Any, part: Any) -> bool:
    return part in data if isinstance(data, dict) else isinstance(part, int) and part < len(data)


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    by_tag: dict[str, type[BaseModel]] = {
        "categorical": declarations.Categorical,
        "multi_categorical": declarations.MultiCategorical,
        "numeric": declarations.Numeric,
        "files": declarations.FileSplit,
        "time": declarations.TimeSplit,
        "hash": declarations.HashSplit,
        "labels": declarations.Label,
        "keys": declarations.Keys,
        "fitted": declarations.Fitted,
    }
    model = next((by_tag[part] for part in reversed(location[:-1]) if part in by_tag), Schema)
    return sorted(typing.cast(type[BaseModel], model).model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
