"""Impressions to TFRecords and back: schema, vocabularies, shards, `tf.data` batches."""

from pipelines.alternate import alternate_tasks
from pipelines.convert import convert
from pipelines.dataset import Dataset, open_dataset
from pipelines.errors import DataError
from pipelines.schema import Categorical, Label, MultiCategorical, Numeric, Schema, Target
from pipelines.schema_file import load_schema, save_schema

__all__ = [
    "Categorical",
    "DataError",
    "Dataset",
    "Label",
    "MultiCategorical",
    "Numeric",
    "Schema",
    "Target",
    "alternate_tasks",
    "convert",
    "load_schema",
    "open_dataset",
    "save_schema",
]
