"""A click that depends on the last value of a list: who reads the list in order can learn it, who pools it cannot."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mtlzoo.models import DCRNN
from mtlzoo.optimizers import LazyAdam
from pipelines import Categorical, Label, MultiCategorical, Schema
from pipelines.schema import Fitted, HashSplit

VALUES, LENGTH, ROWS = 6, 4, 8000


def schema() -> Schema:
    history = MultiCategorical(name="clicks", dtype="int", table="item", max_length=LENGTH, keep="last", ordered=True)
    return Schema(
        features=(Categorical(name="item", dtype="int"), history),
        labels=(Label(name="click"),),
        split=HashSplit(key="row"),
        fitted=Fitted(tables={"item": VALUES}),
    )


def log() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Lists of 2 to 4 values; nine of ten impressions of the last value's item are clicked, one of ten of the others.

    Both the item and another value stand in every list, so the set of values says nothing of the click.
    """
    random = np.random.default_rng(3)
    item = random.integers(2, 2 + VALUES - 2, (ROWS, 1))
    other = 2 + (item - 2 + random.integers(1, VALUES - 2, (ROWS, 1))) % (VALUES - 2)
    lengths = random.integers(2, LENGTH, ROWS, endpoint=True)
    is_last = random.random(ROWS) < 0.5
    ids = np.where(random.random((ROWS, LENGTH)) < 0.5, item, other)
    rows = np.arange(ROWS)
    ids[rows, lengths - 1] = np.where(is_last, item[:, 0], other[:, 0])
    ids[rows, lengths - 2] = np.where(is_last, other[:, 0], item[:, 0])
    there = np.arange(LENGTH) < lengths[:, None]
    click = random.random(ROWS) < np.where(is_last, 0.9, 0.1)
    features = {
        "categorical": item.astype("int32"),
        "clicks": np.where(there, ids, 1).astype("int32"),
        "clicks_weights": there.astype("float32"),
    }
    return features, click.astype("float32")[:, None]


@pytest.mark.parametrize(("histories", "low", "high"), [("ordered", 0.85, 0.95), ([], 0.4, 0.65)])
def test_the_last_click_is_learned_where_the_list_is_read_in_order(histories, low, high):
    keras.utils.set_random_seed(1)
    model = DCRNN(
        schema(), units=16, sharing=1.0, tower_units=(16,), histories=histories, history_units=16, dropout=0.0
    )
    model.compile(optimizer=LazyAdam(0.01), weighted_metrics=None)
    features, click = log()
    train = {name: values[: ROWS // 2] for name, values in features.items()}
    test = {name: values[ROWS // 2 :] for name, values in features.items()}
    model.fit(train, {"click": click[: ROWS // 2]}, batch_size=250, epochs=12, verbose=0)
    auc = roc_auc_score(click[ROWS // 2 :], model.predict(test, batch_size=1000, verbose=0)["click"])
    assert low < auc < high
