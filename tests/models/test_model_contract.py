"""What every model of the zoo must do; a model passes by being registered in `mtlzoo.models.MODELS`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import EmbeddingTable, StackedExperts
from mtlzoo.models import MODELS, arguments_of, create
from mtlzoo.tasks import LABEL_SPACES, tasks_of
from mtlzoo.training import evaluate

BATCH = 256


@pytest.fixture(params=list(MODELS))
def name(request) -> str:
    return request.param


@pytest.fixture
def model(name, dataset):
    keras.utils.set_random_seed(3)
    return create(name, dataset.schema, embedding_dim=4)


@pytest.fixture
def plain_model(name, dataset):
    """Without dropout, whose random streams two models do not share."""
    keras.utils.set_random_seed(3)
    rates = {key: 0.0 for key in arguments_of(name) if key == "dropout"}
    return create(name, dataset.schema, embedding_dim=4, **rates)


@pytest.fixture
def batch(dataset):
    return next(iter(dataset.read("train", BATCH)))


def fit_batches(dataset, count: int = 12) -> tf.data.Dataset:
    return dataset.read("train", BATCH, shuffle=True, seed=5).take(count)


def numpy_of(predictions) -> dict[str, np.ndarray]:
    return {task: np.asarray(p) for task, p in predictions.items()}


def predicted(model, features) -> dict[str, np.ndarray]:
    """Without a graph: tracing takes longer than hundreds of such calls."""
    return numpy_of(model({name: tf.convert_to_tensor(values) for name, values in features.items()}, training=False))


def assert_same(a, b, tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for task in a:
        np.testing.assert_allclose(a[task], b[task], rtol=0, atol=tolerance, err_msg=task)


def test_predicts_a_probability_for_every_task(model, dataset, batch):
    predictions = numpy_of(model.predict_on_batch(batch[0]))
    assert list(predictions) == [target.name for target in dataset.schema.targets]
    for task, p in predictions.items():
        assert p.shape == (BATCH, 1), task
        assert p.dtype == np.float32
        assert np.all((p > 0) & (p < 1)), task


def test_says_what_is_published_and_what_is_ours(name):
    assert any(word in MODELS[name].source() for word in ("KDD", "RecSys", "arXiv", "Caruana"))


@pytest.mark.parametrize("label_space", LABEL_SPACES)
def test_joint_probability_is_the_product_along_the_funnel(name, dataset, batch, label_space):
    model = create(name, dataset.schema, embedding_dim=4, label_space=label_space)
    p = predicted(model, batch[0])
    if label_space == "ctcvr":
        # A direct head may exceed its parent's probability; the conditional is then cut at 1.
        np.testing.assert_allclose(p["conversion"], np.minimum(p["ctcvr"] / p["click"], 1.0), rtol=1e-4)
    else:
        np.testing.assert_allclose(p["ctcvr"], p["click"] * p["conversion"], rtol=1e-5)


def test_one_gradient_step_lowers_the_loss(model, batch):
    model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    features, labels, weights = batch
    before = model.evaluate(features, labels, sample_weight=weights, batch_size=BATCH, verbose=0, return_dict=True)
    model.train_on_batch(features, labels, sample_weight=weights)
    after = model.evaluate(features, labels, sample_weight=weights, batch_size=BATCH, verbose=0, return_dict=True)
    assert after["loss"] < before["loss"]


@pytest.mark.parametrize("label_space", LABEL_SPACES)
def test_loss_is_the_mean_over_each_trained_tasks_population(name, dataset, batch, label_space):
    model = create(name, dataset.schema, embedding_dim=4, label_space=label_space)
    model.compile(loss_weights=None)
    features, labels, weights = batch
    p = predicted(model, features)
    expected = float(sum(model.losses))  # penalties on weights
    for task in tasks_of(dataset.schema, label_space):
        if task.trained:
            y, w = labels[task.name].numpy(), weights[task.name].numpy()
            losses = -(y * np.log(p[task.name]) + (1 - y) * np.log(1 - p[task.name]))
            expected += np.sum(w * losses) / np.sum(w)
    loss = model.evaluate(features, labels, sample_weight=weights, batch_size=BATCH, verbose=0, return_dict=True)[
        "loss"
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_loss_weights_weigh_the_trained_tasks(model, batch):
    features, labels, weights = batch
    trained = [task.name for task in model.tasks if task.trained]
    losses = []
    for loss_weights in (dict.fromkeys(trained, 0.0) | {trained[0]: 1.0}, {trained[0]: 0.0}, {trained[0]: 3.0}):
        model.compile(loss_weights=loss_weights, run_eagerly=True)
        logs = model.evaluate(features, labels, sample_weight=weights, batch_size=BATCH, verbose=0, return_dict=True)
        losses.append(logs["loss"])
    first, others, weighted = losses
    penalty = float(sum(model.losses))
    np.testing.assert_allclose(weighted - penalty, 3.0 * (first - penalty) + others - penalty, rtol=1e-5)
    with pytest.raises(ValueError, match=f"trains only {', '.join(trained)}"):
        model.compile(loss_weights={"no_such_task": 1.0})


def test_labels_outside_the_population_change_nothing(name, dataset, batch):
    """In `cvr_clicked`, the conversion label of impressions without a click must not matter."""
    features, labels, weights = batch
    flipped = {**labels, "conversion": tf.where(labels["click"] > 0, labels["conversion"], 1.0 - labels["conversion"])}
    assert np.any(flipped["conversion"].numpy() != labels["conversion"].numpy())
    trained = []
    for y in (labels, flipped):
        keras.utils.set_random_seed(11)
        model = create(name, dataset.schema, embedding_dim=4, label_space="cvr_clicked")
        model.compile(run_eagerly=True)
        model.train_on_batch(features, y, sample_weight=weights)
        trained.append(predicted(model, features))
    assert_same(trained[0], trained[1], tolerance=0)


def test_a_batch_without_clicks_has_a_finite_loss(model, batch):
    features, labels, weights = batch
    keep = np.flatnonzero(labels["click"].numpy()[:, 0] == 0)
    features, labels, weights = tf.nest.map_structure(lambda t: tf.gather(t, keep), (features, labels, weights))
    model.compile(run_eagerly=True)
    logs = model.train_on_batch(features, labels, sample_weight=weights, return_dict=True)
    assert np.isfinite(logs["loss"])
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


def test_a_batch_of_one_gives_the_same_as_in_company(model, batch):
    whole = numpy_of(model.predict_on_batch(batch[0]))
    single = numpy_of(model.predict_on_batch({key: value[7:8] for key, value in batch[0].items()}))
    assert_same(single, {task: p[7:8] for task, p in whole.items()})


def test_ids_out_of_range_are_out_of_vocabulary(model, batch):
    features = dict(batch[0])
    wild, unknown = features["categorical"].numpy().copy(), features["categorical"].numpy().copy()
    wild[0], wild[1], unknown[:2] = 10**9, -5, 0
    assert_same(
        predicted(model, {**features, "categorical": wild}),
        predicted(model, {**features, "categorical": unknown}),
        tolerance=0,
    )


def test_padding_does_not_change_a_prediction(model, dataset, batch):
    features = dict(batch[0])
    for multi in dataset.schema.multis:
        outside = features[multi.weights_name].numpy() == 0
        assert outside.any()
        features[multi.name] = np.where(outside, 3, features[multi.name].numpy())
    assert_same(predicted(model, features), predicted(model, batch[0]), tolerance=0)


def test_save_and_load_keep_predictions_optimizer_and_settings(plain_model, dataset, batch, tmp_path):
    model = plain_model
    model.compile()
    model.fit(fit_batches(dataset, 3), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.get_config() == model.get_config()
    assert_same(predicted(loaded, batch[0]), predicted(model, batch[0]), tolerance=0)
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=b.path)
    features, labels, weights = batch
    for m in (model, loaded):
        m.train_on_batch(features, labels, sample_weight=weights)
    assert_same(predicted(loaded, batch[0]), predicted(model, batch[0]))


def test_a_clone_predicts_and_trains_like_the_model(plain_model, batch):
    model = plain_model
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_same(predicted(clone, batch[0]), predicted(model, batch[0]), tolerance=0)
    features, labels, weights = batch
    model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    clone.compile(optimizer=keras.optimizers.SGD(0.1), loss=model.loss, run_eagerly=True)
    for m in (model, clone):
        m.train_on_batch(features, labels, sample_weight=weights)
    assert_same(predicted(clone, features), predicted(model, features))


def test_the_same_seed_gives_the_same_weights(name, dataset):
    def made(seed):
        keras.utils.set_random_seed(seed)
        return create(name, dataset.schema, embedding_dim=4)

    first, other = made(9).get_weights(), made(10).get_weights()
    assert any(np.any(a != b) for a, b in zip(first, other, strict=True))
    weights = []
    for _ in range(2):
        model = made(9)
        model.compile()
        model.fit(fit_batches(dataset, 3), verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_experts_start_different(model):
    for layer in model.layers:
        if isinstance(layer, StackedExperts):
            x = (
                np.random.default_rng(0)
                .normal(size=(4, model.get_layer(layer.name).input.shape[-1]))
                .astype(np.float32)
            )
            experts = np.asarray(layer(x))  # [4, E, H]
            for i in range(experts.shape[1]):
                for j in range(i):
                    assert not np.allclose(experts[:, i], experts[:, j])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_trains_in_mixed_precision(name, dataset, batch, policy):
    keras.utils.set_random_seed(3)
    model = create(name, dataset.schema, embedding_dim=4, dtype=policy)
    reference = create(name, dataset.schema, embedding_dim=4)
    reference.set_weights(model.get_weights())
    assert_same(predicted(model, batch[0]), predicted(reference, batch[0]), tolerance=0.02)
    for layer in model.layers:
        if isinstance(layer, EmbeddingTable):
            assert all(v.dtype == "float32" for v in layer.weights)
    model.compile()
    first = model.fit(fit_batches(dataset), verbose=0).history["loss"][0]
    second = model.fit(fit_batches(dataset), verbose=0).history["loss"][0]
    assert second < first


def test_a_step_is_traced_once_learns_the_signal_and_every_task_is_evaluated(model, dataset, recwarn, monkeypatch):
    """A step that makes variables is traced twice, and tracing takes longer than anything else in a short run."""
    traced = []
    step = type(model).train_step

    def counted(self, data):
        traced.append(self.name)
        return step(self, data)

    monkeypatch.setattr(type(model), "train_step", counted)
    model.compile()
    model.fit(dataset.read("train", BATCH, shuffle=True, seed=1).take(2), verbose=0)
    assert traced == [model.name]
    model.fit(dataset.read("train", BATCH, shuffle=True, seed=1), epochs=6, verbose=0)
    assert not [str(warning.message) for warning in recwarn if "shuffle" in str(warning.message)]
    tasks = evaluate(model, dataset, "valid")["tasks"]
    assert list(tasks) == ["click", "conversion", "ctcvr"]
    assert tasks["click"]["auc"] > 0.6
    assert tasks["ctcvr"]["auc"] > 0.6
    assert tasks["click"]["rows"] == tasks["ctcvr"]["rows"] == dataset.rows("valid")
    assert tasks["conversion"]["rows"] == tasks["click"]["positives"]
    assert tasks["conversion"]["positives"] == tasks["ctcvr"]["positives"]


def test_default_metrics_of_fit_agree_with_the_evaluation(model, dataset):
    model.compile()
    logs = model.evaluate(dataset.read("valid", BATCH), verbose=0, return_dict=True)
    tasks = evaluate(model, dataset, "valid")["tasks"]
    for task in tasks:
        np.testing.assert_allclose(logs[f"{task}_auc"], tasks[task]["auc"], atol=1e-6)


def test_unknown_argument_lists_the_known_ones(name, dataset):
    with pytest.raises(ValueError, match="embeding_dim.*did you mean 'embedding_dim'"):
        create(name, dataset.schema, embeding_dim=4)
    with pytest.raises(ValueError, match="label_space must be one of cvr_clicked, esmm_product, ctcvr, is 'cvr'"):
        create(name, dataset.schema, label_space="cvr")
    assert "embedding_dim" in arguments_of(name)


def test_an_unfitted_schema_is_refused_with_advice(name, dataset):
    with pytest.raises(ValueError, match="has not been fitted.*mtlzoo data convert"):
        create(name, dataset.schema.model_copy(update={"fitted": None}))
