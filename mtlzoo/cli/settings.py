"""`--set key=value`: settings of a model and of training."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

TRAINING_SETTINGS = (
    "learning_rate", "optimizer", "ema_momentum", "patience", "monitor", "alternate", "preset", "features", "without",
)  # fmt: skip
DOTTED_SETTINGS = ("loss_weights", "lottery")


def parse_settings(model: str, settings: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`key=value` words → arguments of the model, and training settings.

    Raises:
        ValueError: No `=`, or a key that is neither; the message lists the known ones.
    """
    from mtlzoo.models import arguments_of

    defaults = arguments_of(model)
    known = [name for name in defaults if name != "name"]
    arguments: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}")
        top, _, part = key.partition(".")
        if key in known:
            value = parse_value(text)
            one_of_many = isinstance(defaults[key], tuple) and not isinstance(value, list)
            arguments[key] = [value] if one_of_many else value
        elif top in DOTTED_SETTINGS and part:
            training.setdefault(top, {})[part] = parse_value(text)
        elif key in TRAINING_SETTINGS:
            training[key] = parse_value(text)
        else:
            raise ValueError(
                f"--set: {model} has no setting {key!r}; its arguments: {', '.join(known)}; of training: "
                f"{', '.join(TRAINING_SETTINGS)}, loss_weights.TASK, lottery.SETTING"
            )
    return arguments, training


def parse_value(text: str) -> Any:
    """A value as YAML reads it; `256,128` is a list, `{a: 1}` a dict, `1e-3` a number."""
    several = "," in text and text[0] not in "[{"
    return _with_numbers(yaml.safe_load(f"[{text}]" if several else text))


def _with_numbers(value: Any) -> Any:
    # YAML 1.1 takes 1e-3 for text, since it lacks a point.
    if isinstance(value, list):
        return [_with_numbers(v) for v in value]
    if isinstance(value, dict):
        return {key: _with_numbers(v) for key, v in value.items()}
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def validated(kind: Any, **values: Any) -> Any:
    """Builds a pydantic object; its first fault becomes one line.

    Raises:
        ValueError: What is wrong with which setting.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {message} (got {fault['input']!r})" if where else message) from None
