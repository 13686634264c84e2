"""Training into a run directory: selection on validation, the same seed the same result, interruption without loss."""

from __future__ import annotations

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.models import create
from mtlzoo.optimizers import LazyAdam, RowSparseAdagrad
from mtlzoo.training import RunConfig, evaluate, open_run, train
from mtlzoo.training.run import AUTO_MOMENTUM
from mtlzoo.training.train import _State, averaging_of, compile_as_configured, monitored
from pipelines import DataError, convert, load_schema, open_dataset

SMALL = {"bottom_units": [16], "tower_units": [8], "embedding_dim": 4}


def config(dataset, **changes) -> RunConfig:
    settings = {
        "model": "shared_bottom",
        "arguments": SMALL,
        "data": str(dataset.folder),
        "epochs": 3,
        "batch_size": 512,
    }
    return RunConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    return train(config(dataset), tmp_path_factory.mktemp("runs") / "run")


class Stop(keras.callbacks.Callback):
    """Interrupts a run in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self._now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._now == self._epoch and batch == 2:
            raise KeyboardInterrupt


def weights_of(run) -> list[np.ndarray]:
    return run.model().get_weights()


def assert_same_weights(a, b) -> None:
    for x, y in zip(weights_of(a), weights_of(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_directory_holds_everything(run, dataset):
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.json", "schema.yaml", "model.keras", "history.json", "metrics.json", "checkpoints", "logs"} <= names
    assert not run.folder.with_name("run.partial").exists()
    assert any((run.folder / "logs").rglob("events.*"))
    saved = json.loads((run.folder / "config.json").read_text())
    assert saved["training"]["seed"] == 1
    assert saved["dataset"]["rows"]["train"] == dataset.rows("train")
    assert set(saved["versions"]) == {"mtlzoo", "keras", "tensorflow"}
    assert len(run.history) == 3
    assert run.history[0]["impressions_per_second"] > 0


def test_the_best_epoch_on_validation_is_kept(run, dataset):
    losses = [epoch["val_loss"] for epoch in run.history]
    assert run.metrics["best_epoch"] == 1 + int(np.argmin(losses))
    logs = run.model().evaluate(dataset.read("valid", 512), verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], min(losses), rtol=1e-5)
    assert run.metrics["valid"] == evaluate(run.model(), dataset, "valid")


@pytest.mark.parametrize(
    ("wanted", "seen"), [({"features": ["city", "item"]}, ["item", "city"]), ({"features": "age"}, ["age"])]
)
def test_a_model_sees_the_features_that_it_is_given(dataset, tmp_path, wanted, seen):
    run = train(config(dataset, epochs=1, **wanted), tmp_path / "run")
    assert [feature.name for feature in run.model().schema.features] == seen
    assert [feature.name for feature in run.dataset().schema.features] == seen
    assert run.dataset(dataset.folder).schema == run.model().schema
    assert run.metrics["valid"] == evaluate(run.model(), run.dataset(), "valid")
    with pytest.raises(DataError, match="other features"):
        evaluate(run.model(), dataset, "valid")


def test_a_model_does_not_see_what_is_left_out(dataset, tmp_path):
    with pytest.raises(DataError, match=r"no feature itm; the features are item"):
        train(config(dataset, without=["itm"]), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    run = train(config(dataset, epochs=1, without=["item", "tags"]), tmp_path / "run")
    seen = {feature.name for feature in run.model().schema.features}
    assert {feature.name for feature in dataset.schema.features} - seen == {"item", "tags"}


def test_the_best_epoch_can_be_selected_by_auc():
    logs = {"val_loss": 0.3, "val_click_auc": 0.8, "val_conversion_auc": float("nan"), "val_ctcvr_auc": 0.6}
    assert monitored(logs, "auc") == pytest.approx(0.7)
    assert monitored(logs, "loss") == 0.3


@pytest.mark.parametrize("name", ["adam", "lazy_adam", "row_sparse_adagrad"])
def test_the_optimizer_is_the_one_that_is_named(name, dataset):
    model = create("shared_bottom", dataset.schema, **SMALL)
    compile_as_configured(model, config(dataset, optimizer=name, learning_rate=0.01))
    kind = {"adam": keras.optimizers.Adam, "lazy_adam": LazyAdam, "row_sparse_adagrad": RowSparseAdagrad}[name]
    assert type(model.optimizer) is kind
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)


def test_alternating_tasks_need_the_optimizer_that_skips_zeros(dataset):
    with pytest.raises(ValueError, match="alternate needs optimizer lazy_adam, is adam"):
        config(dataset, alternate=True, optimizer="adam")
    model = create("shared_bottom", dataset.schema, **SMALL)
    compile_as_configured(model, config(dataset, alternate=True))
    assert model.optimizer.skip_zeros


def test_the_same_seed_gives_the_same_result(run, dataset, tmp_path):
    again = train(config(dataset), tmp_path / "again")
    assert_same_weights(run, again)
    assert again.metrics == run.metrics
    other = train(config(dataset, seed=2), tmp_path / "other")
    assert other.metrics != run.metrics


def test_an_interrupted_run_ends_where_an_uninterrupted_one_ends(run, dataset, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(dataset), out, callbacks=[Stop(epoch=1)])
    assert not out.exists()
    resumed = train(config(dataset), out)
    assert_same_weights(run, resumed)
    keys = [key for key in run.history[0] if key != "impressions_per_second"]
    for a, b in zip(run.history, resumed.history, strict=True):
        assert [a[key] for key in keys] == [b[key] for key in keys]


def test_averaged_weights_are_validated_kept_and_gone_on_with(dataset, tmp_path):
    averaging = config(dataset, ema_momentum=0.9)
    whole = train(averaging, tmp_path / "whole")
    plain = train(config(dataset, ema_momentum=None, epochs=1), tmp_path / "plain")
    assert whole.history[0]["loss"] == plain.history[0]["loss"]  # averaging changes no step
    assert whole.history[0]["val_loss"] != plain.history[0]["val_loss"]
    best = whole.history[whole.metrics["best_epoch"] - 1]
    logs = whole.model().evaluate(dataset.read("valid", 512), verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], best["val_loss"], rtol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        train(averaging, tmp_path / "run", callbacks=[Stop(epoch=1)])
    assert_same_weights(whole, train(averaging, tmp_path / "run"))


def test_auto_averages_small_models_only(dataset, monkeypatch):
    model = create("shared_bottom", dataset.schema, **SMALL)
    model.compile()

    def momenta(**changes) -> list[float]:
        return [average.momentum for average in averaging_of(config(dataset, **changes), model)]

    assert momenta() == [AUTO_MOMENTUM]
    assert momenta(ema_momentum=None) == []
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert momenta() == []
    monkeypatch.setitem(averaging_of.__globals__, "AUTO_WEIGHTS", model.count_params() - 1)
    assert momenta() == []
    assert momenta(ema_momentum=0.9) == [0.9]
    for wrong in (1.0, -0.1, "often", True):
        with pytest.raises(ValueError, match="must be a number in \\[0, 1\\), auto or null"):
            config(dataset, ema_momentum=wrong)


def test_an_interruption_leaves_the_older_run_whole(dataset, tmp_path):
    out = tmp_path / "run"
    first = train(config(dataset, epochs=1), out)
    before = weights_of(first)
    with pytest.raises(KeyboardInterrupt):
        train(config(dataset, seed=7), out, callbacks=[Stop(epoch=0)])
    for x, y in zip(before, weights_of(open_run(out)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert open_run(out).config.seed == 1


def test_a_run_killed_while_it_takes_its_place_is_not_lost(run, tmp_path):
    """Between the two renames neither name holds a run; the next training puts the older one back first."""
    aside = tmp_path / "run.old"
    shutil.copytree(run.folder, aside)
    with pytest.raises(DataError, match="no such dataset directory"):
        train(run.config.model_copy(update={"data": str(tmp_path / "nothing")}), tmp_path / "run")
    assert_same_weights(run, open_run(tmp_path / "run"))


def test_another_configuration_does_not_go_on_from_the_interrupted_one(dataset, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(dataset, seed=7), out, callbacks=[Stop(epoch=1)])
    run = train(config(dataset, epochs=1), out)
    assert len(run.history) == 1
    assert run.config.seed == 1


def test_stops_early_when_validation_gets_no_better():
    state = _State()
    for auc in (0.6, 0.7, 0.65, 0.69):
        assert not state.patience_spent(2)
        state = state.after({"loss": 1.0, "val_click_auc": auc}, "auc")
    assert state.patience_spent(2)
    assert state.best_epoch == 2
    falling = _State()
    for loss in (0.5, 0.4, 0.45):
        falling = falling.after({"loss": 1.0, "val_loss": loss}, "loss")
    assert falling.best_epoch == 2


def test_the_test_split_is_never_opened(dataset, tmp_path):
    copy = tmp_path / "data"
    copy.mkdir()
    for path in dataset.folder.iterdir():
        if not path.name.startswith("test-"):
            (copy / path.name).symlink_to(path)
    for path in dataset.folder.glob("test-*"):
        (copy / path.name).write_bytes(b"\xff" * path.stat().st_size)
    train(config(open_dataset(copy), epochs=1), tmp_path / "run")


def test_an_exploding_loss_is_said_plainly(dataset, tmp_path):
    with pytest.raises(FloatingPointError, match="epoch 1: the training loss is .*lower the learning rate"):
        train(config(dataset, learning_rate=1e30), tmp_path / "run")


def test_a_directory_that_is_no_run_is_not_touched(dataset, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="is no finished run"):
        train(config(dataset), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    with pytest.raises(DataError, match="is no finished run"):
        open_run(tmp_path)
    with pytest.raises(DataError, match="no such run directory"):
        open_run(tmp_path / "nothing")


def test_a_flipped_bit_in_a_shard_is_named(dataset, tmp_path):
    copy = tmp_path / "data"
    copy.mkdir()
    for path in dataset.folder.iterdir():
        (copy / path.name).symlink_to(path)
    victim = copy / dataset.manifest.splits["train"][0].file
    content = bytearray(victim.read_bytes())
    victim.unlink()
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(bytes(content))
    with pytest.raises(DataError, match=victim.name):
        train(config(open_dataset(copy), epochs=1), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_label_without_positives_is_refused(raw_log, demo_schema, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = raw_log.table
    nothing = pa.array([0] * table.num_rows, table.schema.field("conversion").type)
    table = table.set_column(table.schema.get_field_index("conversion"), "conversion", nothing)
    pq.write_table(table, tmp_path / "log.parquet")
    folder = convert([tmp_path / "log.parquet"], demo_schema, tmp_path / "data")
    with pytest.raises(DataError, match="label 'conversion' has no positives in the split 'train'"):
        train(config(open_dataset(folder)), tmp_path / "run")


def test_evaluating_on_data_with_other_vocabularies_is_refused(run, raw_log, demo_schema, tmp_path):
    split = demo_schema.split.model_copy(update={"salt": "another"})
    folder = convert([raw_log.parquet], demo_schema.model_copy(update={"split": split}), tmp_path / "data")
    assert load_schema(folder / "schema.yaml").fitted != run.dataset().schema.fitted
    with pytest.raises(DataError, match="other features or vocabularies"):
        evaluate(run.model(), open_dataset(folder))
