"""What a conversion takes over from an existing dataset: vocabularies, means, deviations and bucket edges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.dataset import open_dataset
from pipelines.differences import feature_differences
from pipelines.errors import DataError
from pipelines.manifest import SCHEMA
from pipelines.schema import Schema
from pipelines.vocabulary import Vocabulary


@dataclass(frozen=True)
class Like:
    """What a dataset gives to another.

    Attributes:
        schema: The schema of the new dataset, fitted as the old one's.
        vocabularies: Those of the old dataset, by table name.
        marks: What tells the old dataset from others: digests of its schema and of each vocabulary.
    """

    schema: Schema
    vocabularies: dict[str, Vocabulary]
    marks: tuple[str, ...]


def load_like(folder: Path, schema: Schema | None) -> Like:
    """Reads what a dataset gives to one that is converted like it.

    Args:
        folder: The existing dataset.
        schema: Gives labels, keys and split; `None`: they are the dataset's too.

    Raises:
        DataError: It is no whole dataset, or the schema has other features.
    """
    dataset = open_dataset(folder)
    old = dataset.schema
    new = old if schema is None else schema.model_copy(update={"fitted": old.fitted})
    differences = feature_differences(old, new)
    if differences:
        raise DataError(
            f"{folder}: to convert like it, the schema must have its features: {'; '.join(differences)}. "
            f"Take them from {folder / SCHEMA}, or leave the schema out"
        )
    vocabularies = dataset.vocabularies
    digests = (f"{name} {vocabularies[name].digest}" for name in sorted(vocabularies))
    return Like(new, vocabularies, (old.digest(), *digests))


def refuse_overlap(folder: Path, used: tuple[Path, ...]) -> None:
    """Refuses a dataset to convert like that lies where the conversion writes or deletes.

    Args:
        folder: The dataset.
        used: The output directory, and those beside it that stand in for it meanwhile.

    Raises:
        DataError: One is the dataset, lies inside it, or holds it.
    """
    place = folder.resolve()
    for path in used:
        other = path.resolve()
        if other == place or other in place.parents or place in other.parents:
            where = "is" if other == place else "lies inside" if place in other.parents else "holds"
            raise DataError(
                f"{used[0]}: cannot be written like {folder}: {path} {where} that dataset, which must stay as it is; "
                f"choose another directory"
            )
