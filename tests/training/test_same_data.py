"""A model answers for the dataset that it was trained on, for logs that were converted like it, and for no other."""

from __future__ import annotations

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlzoo.models import create
from mtlzoo.scoring import score
from mtlzoo.training.evaluate import evaluate
from pipelines import DataError, convert, open_dataset


@pytest.fixture(scope="module")
def model(dataset):
    """Untrained, with weights so large that rows differ."""
    made = create("shared_bottom", dataset.schema, embedding_dim=4, bottom_units=(16,), tower_units=(8,))
    random = np.random.default_rng(0)
    for weight in made.trainable_weights:
        weight.assign_add(random.normal(scale=0.1, size=weight.shape))
    return made


@pytest.fixture(scope="module")
def relabelled(raw_log, tmp_path_factory):
    """The log with other cities, as many and as frequent."""
    cities = pa.compute.replace_substring(raw_log.table["city"], "Quito", "Cuzco")
    table = raw_log.table.set_column(raw_log.table.column_names.index("city"), "city", cities)
    path = tmp_path_factory.mktemp("relabelled") / "log.parquet"
    pq.write_table(table, path)
    return path


def test_a_vocabulary_of_the_same_size_with_other_values_is_refused(model, relabelled, dataset, demo_schema, tmp_path):
    other = open_dataset(convert([relabelled], demo_schema, tmp_path / "other"))
    assert other.schema.fitted.tables == dataset.schema.fitted.tables
    message = "another vocabulary: city. Use the dataset .* `mtlzoo data convert RAW... --like DIR --out OUT`"
    with pytest.raises(DataError, match=message):
        evaluate(model, other)
    with pytest.raises(DataError, match=message):
        score(model, other, tmp_path / "scores.parquet")
    model.save(tmp_path / "model.keras")
    with pytest.raises(DataError, match=message):
        evaluate(keras.models.load_model(tmp_path / "model.keras"), other)


def test_the_same_rows_converted_like_the_dataset_have_the_same_metrics(model, raw_log, dataset, tmp_path):
    again = open_dataset(convert([raw_log.csv], out=tmp_path / "again", shards=5, like=dataset.folder))
    for split in ("valid", "test"):
        assert evaluate(model, again, split) == evaluate(model, dataset, split)


def test_new_logs_converted_like_the_dataset_can_be_evaluated(model, relabelled, dataset, tmp_path):
    """One city is new to the model: its rows get the id of out of vocabulary, and nothing else changes."""
    new = open_dataset(convert([relabelled], out=tmp_path / "new", like=dataset.folder))
    found, wanted = evaluate(model, new), evaluate(model, dataset)
    assert found["rows"] == wanted["rows"]
    assert found["tasks"]["click"]["positives"] == wanted["tasks"]["click"]["positives"]
    assert found["tasks"]["click"]["log_loss"] != wanted["tasks"]["click"]["log_loss"]
    assert score(model, new, tmp_path / "scores.parquet") == new.rows("test")
