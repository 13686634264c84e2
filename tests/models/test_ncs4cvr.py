"""NCS4CVR: equal to SharedBottom with open masks, disjoint where masks are, and what is masked stays where it is."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlzoo.layers import MaskedDense
from mtlzoo.losses import Focal, SquaredError
from mtlzoo.models import NCS4CVR, SharedBottom
from mtlzoo.optimizers import LazyAdam
from pipelines import alternate_tasks

UNITS = (24, 12)
SMALL = {"trunk_units": UNITS, "embedding_dim": 4, "dropout": 0.0}


@pytest.fixture
def batch(dataset):
    return next(iter(dataset.read("train", 512)))


def trunk_of(model) -> list[MaskedDense]:
    return [layer for layer in model.layers if isinstance(layer, MaskedDense)]


def set_disjoint_masks(model, seed: int = 0) -> None:
    """Each connection is used by click only, by conversion only, by both or by none, a quarter of them each."""
    rng = np.random.default_rng(seed)
    for layer in trunk_of(model):
        owner = rng.integers(0, 4, layer.kernel.shape)
        layer.set_masks(np.stack([(owner == 0) | (owner == 2), (owner == 1) | (owner == 2)]))


def gradients(model, batch, task: str) -> list[np.ndarray]:
    """Gradients of the trunk's kernels, from one task's loss alone."""
    features, labels, weights = batch
    kernels = [layer.kernel.value for layer in trunk_of(model)]
    with tf.GradientTape() as tape:
        p = model(features)[task]
        loss = model.default_losses()[task](labels[task], p, sample_weight=weights[task])
    return [g.numpy() for g in tape.gradient(loss, kernels)]


def same_weights(ours: NCS4CVR, theirs: SharedBottom) -> None:
    """Gives both models the same weights."""
    dense = [step for step in theirs.get_layer("bottom").steps if isinstance(step, keras.layers.Dense)]
    for layer, other in zip(trunk_of(ours), dense, strict=True):
        layer.kernel.assign(other.kernel)
        layer.bias.assign(other.bias)
    for layer in theirs.layers:
        if layer.weights and layer.name != "bottom":
            ours.get_layer(layer.name).set_weights(layer.get_weights())


@pytest.mark.parametrize("label_space", ["cvr_clicked", "esmm_product", "ctcvr"])
def test_open_masks_are_shared_bottom_exactly(dataset, batch, label_space):
    """The same probabilities, bit for bit; after five steps the same up to the order of sums."""
    ours = NCS4CVR(dataset.schema, mask="lottery", label_space=label_space, **SMALL)
    theirs = SharedBottom(
        dataset.schema, bottom_units=UNITS, tower_units=(), embedding_dim=4, dropout=0.0, label_space=label_space
    )
    same_weights(ours, theirs)
    features, labels, weights = batch
    for task, p in ours(features).items():
        np.testing.assert_array_equal(p, theirs(features)[task], err_msg=task)
    for model in (ours, theirs):
        model.compile(optimizer=keras.optimizers.SGD(0.5))
        for _ in range(5):
            model.train_on_batch(features, labels, sample_weight=weights)
    for task, p in ours(features).items():
        # The gradient of a kernel is the sum of the tasks' products here, the product of their sum there.
        np.testing.assert_allclose(p, theirs(features)[task], rtol=1e-5, err_msg=task)


def test_disjoint_masks_have_disjoint_gradients(dataset, batch):
    model = NCS4CVR(dataset.schema, mask="lottery", label_space="cvr_clicked", **SMALL)
    rng = np.random.default_rng(1)
    for layer in trunk_of(model):
        first = rng.integers(0, 2, layer.kernel.shape)
        layer.set_masks(np.stack([first, 1 - first]))
    click, conversion = gradients(model, batch, "click"), gradients(model, batch, "conversion")
    for layer, a, b in zip(trunk_of(model), click, conversion, strict=True):
        masks = np.asarray(layer.masks())
        assert np.any(a)
        assert np.any(b)
        assert not np.any(a[masks[0] == 0])
        assert not np.any(b[masks[1] == 0])
        assert not np.any((a != 0) & (b != 0))


def snapshot(model) -> list[tuple[np.ndarray, ...]]:
    """Kernel, first and second moment of each layer of the trunk."""
    momentums = {v.path.split("/", 1)[1]: v for v in model.optimizer.variables}
    found = []
    for layer in trunk_of(model):
        key = layer.kernel.path.replace("/", "_")
        moments = [v for path, v in momentums.items() if path.startswith(key)]
        assert len(moments) == 2, list(momentums)
        found.append((layer.kernel.numpy(), *(v.numpy() for v in moments)))
    return found


def test_a_connection_that_no_task_uses_never_moves(dataset):
    model = NCS4CVR(dataset.schema, mask="lottery", **SMALL)
    set_disjoint_masks(model)
    model.compile()
    start = [layer.kernel.numpy() for layer in trunk_of(model)]
    model.fit(dataset.read("train", 256, shuffle=True, seed=1).take(8), verbose=0)
    for layer, before, (kernel, *moments) in zip(trunk_of(model), start, snapshot(model), strict=True):
        used = np.asarray(layer.masks()).any(axis=0)
        dead = ~used
        np.testing.assert_array_equal(kernel[dead], before[dead])
        assert np.any(kernel[used] != before[used])
        for moment in moments:
            assert not np.any(moment[dead])
            assert np.any(moment[used])


def test_alternating_steps_move_only_what_the_task_uses(dataset):
    """Neither weights nor the optimizer's moments of the other task's connections, in any step."""
    model = NCS4CVR(dataset.schema, mask="lottery", label_space="cvr_clicked", **SMALL)
    set_disjoint_masks(model)
    model.compile(optimizer=LazyAdam(1e-3, skip_zeros=True, weight_decay=0.01))
    steps = alternate_tasks(dataset.read("train", 256, shuffle=True, seed=1).take(4), ["click", "conversion"])
    model.optimizer.build(model.trainable_variables)
    before = snapshot(model)
    for i, (features, labels, weights) in enumerate(steps):
        model.train_on_batch(features, labels, sample_weight=weights)
        after = snapshot(model)
        for layer, old, new in zip(trunk_of(model), before, after, strict=True):
            foreign = np.asarray(layer.masks())[i % 2] == 0
            for a, b in zip(old, new, strict=True):
                np.testing.assert_array_equal(a[foreign], b[foreign])
                assert np.any(a != b)
        before = after


def test_momentum_of_another_task_moves_masked_weights_without_skip_zeros(dataset):
    """Why `skip_zeros` is there: the released code's third defect, seen."""
    model = NCS4CVR(dataset.schema, mask="lottery", label_space="cvr_clicked", **SMALL)
    set_disjoint_masks(model)
    model.compile(optimizer=LazyAdam(1e-3))
    steps = list(alternate_tasks(dataset.read("train", 256).take(1), ["click", "conversion"]))
    kernels = []
    for features, labels, weights in steps:
        model.train_on_batch(features, labels, sample_weight=weights)
        kernels.append([layer.kernel.numpy() for layer in trunk_of(model)])
    foreign = np.asarray(trunk_of(model)[0].masks())[1] == 0
    assert np.any(kernels[0][0][foreign] != kernels[1][0][foreign])


def test_learned_masks_differ_between_tasks_after_training(dataset):
    keras.utils.set_random_seed(1)
    model = NCS4CVR(dataset.schema, initial_density=0.52, **SMALL)  # a few steps from closing
    model.compile()
    model.fit(dataset.read("train", 128, shuffle=True, seed=1), epochs=2, verbose=0)
    masks = np.asarray(trunk_of(model)[0].masks())
    assert set(np.unique(masks)) == {0.0, 1.0}
    assert np.any(masks[0] != masks[1])


@pytest.mark.parametrize("mask", ["learned", "lottery"])
def test_save_and_load_keep_masks(dataset, batch, tmp_path, mask):
    model = NCS4CVR(dataset.schema, mask=mask, **SMALL)
    rng = np.random.default_rng(3)
    for layer in trunk_of(model):
        values = rng.integers(0, 2, (2, *layer.kernel.shape))
        layer.set_masks(values) if mask == "lottery" else layer.gates.assign(values - 0.5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(trunk_of(model), trunk_of(loaded), strict=True):
        np.testing.assert_array_equal(a.masks(), b.masks())
        assert 0.3 < float(np.mean(a.masks())) < 0.7
    for task, p in model.predict_on_batch(batch[0]).items():
        np.testing.assert_array_equal(p, loaded.predict_on_batch(batch[0])[task])


def test_pairwise_dots_come_before_the_features(dataset):
    plain = NCS4CVR(dataset.schema, **SMALL)
    dots = NCS4CVR(dataset.schema, pairwise_dots=True, **SMALL)
    fields = len(dataset.schema.packed_categorical) + len(dataset.schema.multis)
    widths = [trunk_of(model)[0].kernel.shape[0] for model in (plain, dots)]
    assert widths[1] - widths[0] == fields**2


def test_the_papers_trunk_has_its_number_of_masked_weights():
    """20 fields of width 16 with all dot products: 720 inputs, 532,480 masked weights."""
    layers = [MaskedDense(units, num_tasks=2, mask="fixed") for units in (512, 256, 128)]
    x = np.zeros((1, 20 * 20 + 20 * 16), "float32")
    for layer in layers:
        x = layer(x)
    assert sum(int(np.prod(layer.kernel.shape)) for layer in layers) == 532_480


def test_paper_losses_follow_the_funnel(dataset):
    model = NCS4CVR(dataset.schema, losses="paper", label_space="cvr_clicked", **SMALL)
    losses = model.default_losses()
    assert isinstance(losses["click"], Focal)
    assert (losses["click"].alpha, losses["click"].gamma) == (0.75, 2.0)
    assert isinstance(losses["conversion"], SquaredError)
    assert losses["ctcvr"] is None
    assert model.default_loss_weights() == {"conversion": 1.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": "random"}, "mask must be one of learned, lottery, is 'random'"),
        ({"losses": "mse"}, "losses must be one of cross_entropy, paper, is 'mse'"),
        ({"trunk_units": ()}, "trunk_units must name the width of at least one layer"),
        ({"initial_density": 1.5}, "initial_density must be above 0 and below 1, is 1.5"),
        ({"l0": -1.0}, "l0 must be"),
    ],
)
def test_bad_arguments_are_named(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        NCS4CVR(dataset.schema, **{**SMALL, **arguments})


def test_masks_of_another_shape_are_refused(dataset):
    layer = trunk_of(NCS4CVR(dataset.schema, mask="lottery", **SMALL))[0]
    with pytest.raises(ValueError, match=r"trunk_0: masks must have shape \(2, "):
        layer.set_masks(np.ones(layer.kernel.shape))


def test_a_learned_mask_cannot_be_set(dataset):
    layer = trunk_of(NCS4CVR(dataset.schema, **SMALL))[0]
    with pytest.raises(ValueError, match="set_masks needs mask='fixed'"):
        layer.set_masks(np.ones((2, *layer.kernel.shape)))
