"""Modules of feature interaction, by name or of the user's own, several copies of each on the same features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mtlzoo.layers import GatedCrossNetwork, HashCodebook, MaskNet
from mtlzoo.models.inputs import EmbeddedFeatures
from pipelines.schema import Categorical, Numeric, Schema

INTERACTIONS = ("masknet", "gdcn", "memonet")


class Interactions:
    """Which modules of feature interaction there are.

    `"masknet"` (`mtlzoo.layers.MaskNet`) and `"gdcn"` (`GatedCrossNetwork`) read all features side by side; `"memonet"`
    (`HashCodebook`) reads the ids and embeddings of the single-valued fields, and the rest beside them. A Keras layer
    of the user's own reads all features side by side, `[B, D]`, and gives `[B, units]`; each of its copies is made
    anew from its config.

    Args:
        modules: Names and layers; what stands there more than once counts as often.
        units: Width of every module's output.
        settings: By name, arguments of the module's layer that differ from its defaults.
        dtype: Dtype policy of the named modules; a layer of the user's own keeps its own.

    Raises:
        ValueError: There is no module, an unknown name, or settings for a name that is not among the modules.

    Source: the groups of modules of Bi et al. (DTN, arXiv 2408.11611); modules as arguments are our design.
    """

    def __init__(
        self,
        modules: Sequence[Any],
        units: int,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        dtype: Any = None,
    ) -> None:
        if isinstance(modules, str) or not modules:
            raise ValueError(f"interactions must be a list of at least one module, is {modules!r}")
        self.modules = [_checked(module) for module in modules]
        self.units = units
        self.settings = {name: dict(values) for name, values in (settings or {}).items()}
        self.dtype = dtype
        strangers = sorted(set(self.settings) - {module for module in self.modules if isinstance(module, str)})
        if strangers:
            raise ValueError(f"interaction_settings names {', '.join(strangers)}, which interactions does not")

    @property
    def config(self) -> list[Any]:
        """The modules as plain data, which `Interactions` takes as well."""
        return [m if isinstance(m, str) else keras.saving.serialize_keras_object(m) for m in self.modules]

    @property
    def kinds(self) -> list[tuple[Any, int]]:
        """Each different module and how often it stands there."""
        plain = [json.dumps(config, sort_keys=True, default=str) for config in self.config]
        return [(self.modules[plain.index(text)], plain.count(text)) for text in dict.fromkeys(plain)]

    @property
    def names(self) -> list[str]:
        """A name for each module of a group, numbered where there are several of a kind."""
        return [
            _name(kind) if count == 1 else f"{_name(kind)}_{i + 1}" for kind, count in self.kinds for i in range(count)
        ]

    def outputs(
        self, schema: Schema, inputs: dict[str, Any], embedded: EmbeddedFeatures, x: Any, groups: int = 1
    ) -> Any:
        """What several groups of modules make of the features.

        All copies of one named kind are one layer; what they read of the features, they read in one matrix product.

        Args:
            schema: Fitted schema.
            inputs: Of the model.
            embedded: Its features.
            x: All features side by side, `[B, D]`.
            groups: Number of groups; each holds every module.

        Returns:
            `[B, groups * modules, units]`: group by group, each with its modules in the order of `names`.

        Raises:
            ValueError: A module's output is not `[B, units]`, or the schema has too few fields for it.
        """
        by_kind = []
        for kind, repeats in self.kinds:
            copies = groups * repeats
            if kind == "memonet":
                fields, read = _codebook_inputs(schema, inputs, embedded)
                sizes = [schema.table_size(field) for field in fields]
                output = self._named(kind, copies, sizes=sizes)(read)
            elif isinstance(kind, str):
                output = self._named(kind, copies)(x)
            else:
                output = self._own(kind, x, copies)
            by_kind.append(keras.layers.Reshape((groups, repeats, self.units))(output))
        found = by_kind[0] if len(by_kind) == 1 else keras.layers.Concatenate(axis=2, dtype=self.dtype)(by_kind)
        return keras.layers.Reshape((groups * len(self.names), self.units))(found)

    def _named(self, name: str, copies: int, **arguments: Any) -> Any:
        settings = {"copies": copies, "dtype": self.dtype, "name": name, **arguments, **self.settings.get(name, {})}
        if name == "masknet":
            return MaskNet(**{"units": (self.units, self.units), **settings})
        return {"gdcn": GatedCrossNetwork, "memonet": HashCodebook}[name](**{"units": self.units, **settings})

    def _own(self, template: Any, x: Any, copies: int) -> Any:
        """`[B, copies, units]` from copies of the user's layer."""
        outputs = []
        for i in range(copies):
            layer = type(template).from_config({**template.get_config(), "name": f"{template.name}_{i}"})
            output = layer(x)
            if tuple(output.shape[1:]) != (self.units,):
                raise ValueError(
                    f"the interaction module {template.name} gives outputs of shape {tuple(output.shape)}, but every "
                    f"module must give [batch, {self.units}]; change its width, or the argument that says {self.units}"
                )
            outputs.append(keras.layers.Reshape((1, self.units))(output))
        return outputs[0] if copies == 1 else keras.layers.Concatenate(axis=1, dtype=self.dtype)(outputs)


def _name(module: Any) -> str:
    return module if isinstance(module, str) else module.name


def _checked(module: Any) -> Any:
    """A name or a layer; a layer may be given as its serialized form."""
    if isinstance(module, dict):
        module = keras.saving.deserialize_keras_object(module)
    if isinstance(module, keras.layers.Layer) or module in INTERACTIONS:
        return module
    raise ValueError(
        f"there is no interaction module {module!r}; known: {', '.join(INTERACTIONS)}, or a Keras layer of your own"
    )


def _codebook_inputs(
    schema: Schema, inputs: dict[str, Any], embedded: EmbeddedFeatures
) -> tuple[list[Categorical | Numeric], tuple[Any, ...]]:
    """Single-valued fields of one embedding width; their ids, their embeddings, and everything else side by side.

    The width is the one that most of these fields have.
    """
    by_name = {feature.name: feature for feature in schema.packed_categorical}
    packed = list(by_name)
    singles = [[name for name in names if name in packed] for names in embedded.names]
    most = max(range(len(singles)), key=lambda i: len(singles[i]), default=None)
    if most is None or len(singles[most]) < 2:
        raise ValueError(
            "the interaction module memonet pairs single-valued fields of one embedding width, and this schema has "
            "fewer than two; leave memonet out"
        )
    chosen = singles[most]
    places = [packed.index(name) for name in chosen]
    ids = keras.ops.take(inputs["categorical"], places, axis=1)  # [B, F]
    fields = embedded.fields[most][:, : len(chosen)]  # [B, F, e]: single-valued fields come first
    rest = [keras.layers.Flatten()(group) for i, group in enumerate(embedded.fields) if i != most]
    if len(embedded.names[most]) > len(chosen):
        rest.append(keras.layers.Flatten()(embedded.fields[most][:, len(chosen) :]))
    rest += [embedded.numeric] if embedded.numeric is not None else []
    beside = [rest[0] if len(rest) == 1 else keras.layers.Concatenate()(rest)] if rest else []
    return [by_name[name] for name in chosen], (ids, fields, *beside)
