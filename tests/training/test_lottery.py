"""Tickets: pruned counts, one rewound start for all, the best on validation, interruption without loss."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from mtlzoo.layers import MaskedDense
from mtlzoo.layers.pruning import pruning_rate
from mtlzoo.models import NCS4CVR
from mtlzoo.training import Lottery, RunConfig, find_tickets, open_run, train
from mtlzoo.training.lottery import best_round
from mtlzoo.training.presets import preset_of

SMALL = {"trunk_units": [16, 8], "embedding_dim": 4}
LOTTERY = Lottery(rounds=2, final_density=0.25)


def new_model(dataset, **changes) -> NCS4CVR:
    keras.utils.set_random_seed(4)
    model = NCS4CVR(dataset.schema, mask="lottery", **{**SMALL, **changes})
    model.compile()
    return model


def trunk_of(model) -> list[MaskedDense]:
    return [layer for layer in model.layers if isinstance(layer, MaskedDense)]


def search(model, dataset, **changes):
    settings = {"lottery": LOTTERY, **changes}
    return find_tickets(
        model, lambda seed: dataset.read("train", 512, shuffle=True, seed=seed), dataset.read("valid", 512), **settings
    )


class Recorder(keras.callbacks.Callback):
    """Keeps the trunk's kernels at the start and at the end of every training; can interrupt one."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.starts, self.ends, self.moments, self.stop_at = [], [], [], stop_at

    def _kernels(self):
        return [layer.kernel.numpy() for layer in trunk_of(self.model)]

    def on_train_begin(self, logs=None):
        if len(self.starts) == self.stop_at:
            raise KeyboardInterrupt
        self.starts.append(self._kernels())
        optimizer = self.model.optimizer
        self.moments.append([v.numpy() for v in (optimizer.iterations, *optimizer.variables[2:])])

    def on_train_end(self, logs=None):
        self.ends.append(self._kernels())


@pytest.fixture(scope="module")
def found(dataset):
    model = new_model(dataset)
    start = [variable.numpy() for variable in model.trainable_variables]
    recorder, lines = Recorder(), []
    tickets = search(model, dataset, callbacks=[recorder], announce=lines.append)
    return model, start, recorder, lines, tickets


def test_every_training_starts_from_the_same_weights_and_a_fresh_optimizer(found):
    model, start, recorder, _, _ = found
    assert len(recorder.starts) == 2 * 3
    for kernels, moments in zip(recorder.starts, recorder.moments, strict=True):
        for a, b in zip(kernels, recorder.starts[0], strict=True):
            np.testing.assert_array_equal(a, b)
        assert not any(np.any(m) for m in moments)
    for layer, kernel in zip(trunk_of(model), recorder.starts[0], strict=True):
        np.testing.assert_array_equal(layer.kernel, kernel)
    for variable, before in zip(model.trainable_variables, start, strict=True):
        np.testing.assert_array_equal(variable, before)


def test_each_pruning_cuts_its_share_of_the_surviving(found):
    *_, tickets = found
    sizes = sum(mask.size for mask in tickets[0].masks)
    rate = pruning_rate(LOTTERY.final_density, LOTTERY.rounds)
    counts = [sizes]
    for _ in range(LOTTERY.rounds):
        counts.append(counts[-1] - round(rate * counts[-1]))
    for ticket in tickets:
        assert [round(r.density * sizes) for r in ticket.rounds] == counts
        assert sum(int(mask.sum()) for mask in ticket.masks) == counts[ticket.chosen]


def test_the_sizes_of_trained_weights_decide_and_what_is_cut_stays_at_its_start(found):
    """The densest pruned mask keeps exactly the largest weights of the dense training."""
    model, _, recorder, _, tickets = found
    for t in range(2):
        dense_end, pruned_end = recorder.ends[3 * t], recorder.ends[3 * t + 1]
        sizes = np.concatenate([np.abs(k).ravel() for k in dense_end])
        cut = np.sort(sizes)[round(pruning_rate(0.25, 2) * sizes.size)]
        for end, after, begin in zip(dense_end, pruned_end, recorder.starts[0], strict=True):
            closed = np.abs(end) < cut
            np.testing.assert_array_equal(after[closed], begin[closed])
            assert np.mean(after[~closed] != begin[~closed]) > 0.5


def test_the_best_on_validation_is_chosen_and_the_model_has_it(found):
    model, _, _, _, tickets = found
    assert [t.label for t in tickets] == ["click", "conversion"]
    for t, ticket in enumerate(tickets):
        values = [r.value for r in ticket.rounds]
        assert values[ticket.chosen] == min(values)
        for layer, mask in zip(trunk_of(model), ticket.masks, strict=True):
            np.testing.assert_array_equal(np.asarray(layer.masks())[t], mask)


@pytest.mark.parametrize(
    ("values", "monitor", "best"),
    [
        ([0.3, 0.2, 0.4], "loss", 1),
        ([0.3, 0.2, 0.2], "loss", 2),
        ([0.6, 0.7, 0.7], "auc", 2),
        ([0.7, None, 0.6], "auc", 0),
        ([None, None], "auc", 0),
    ],
)
def test_ties_go_to_the_sparser(values, monitor, best):
    assert best_round(values, monitor) == best


def test_says_what_it_does(found):
    *_, lines, _ = found
    assert lines[0] == "ticket of click, training 1 of 3 (100.0% of connections)"
    assert lines[5] == "ticket of conversion, training 3 of 3 (25.0% of connections)"


def test_goes_on_behind_the_last_finished_training(dataset, found, tmp_path):
    _, _, recorder, _, tickets = found
    with pytest.raises(KeyboardInterrupt):
        search(new_model(dataset), dataset, folder=tmp_path / "t", callbacks=[Recorder(stop_at=4)])
    keras.utils.set_random_seed(99)
    other_start = NCS4CVR(dataset.schema, mask="lottery", **SMALL)
    other_start.compile()
    keras.utils.set_random_seed(4)  # TensorFlow's own seed takes part in the order of batches
    rest = Recorder()
    resumed = search(other_start, dataset, folder=tmp_path / "t", callbacks=[rest])
    assert len(rest.starts) == 2
    for a, b in zip(tickets, resumed, strict=True):
        assert (a.label, a.chosen, a.rounds) == (b.label, b.chosen, b.rounds)
        for x, y in zip(a.masks, b.masks, strict=True):
            np.testing.assert_array_equal(x, y)
    for layer, kernel in zip(trunk_of(other_start), recorder.starts[0], strict=True):
        np.testing.assert_array_equal(layer.kernel, kernel)


def test_tickets_of_other_settings_are_refused(dataset, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(new_model(dataset), dataset, folder=tmp_path / "t", callbacks=[Recorder(stop_at=0)])
    with pytest.raises(ValueError, match="holds tickets that were looked for with other settings"):
        search(new_model(dataset), dataset, folder=tmp_path / "t", lottery=Lottery(rounds=3))


@pytest.mark.parametrize("label_space", ["esmm_product", "ctcvr"])
def test_every_label_space_has_tickets(dataset, label_space):
    model = new_model(dataset, label_space=label_space)
    tickets = search(model, dataset, lottery=Lottery(rounds=1, final_density=0.5))
    assert [len(t.rounds) for t in tickets] == [2, 2]
    assert all(r.value > 0 for t in tickets for r in t.rounds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds\n.*greater than or equal to 1"),
        ({"final_density": 0.0}, "final_density\n.*greater than 0"),
        ({"final_density": 1.5}, "final_density\n.*less than or equal to 1"),
        ({"scope": "neuron"}, "scope\n.*'global' or 'layer'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Lottery(**settings)


def test_a_model_without_fixed_masks_is_refused(dataset):
    learned = NCS4CVR(dataset.schema, **SMALL)
    learned.compile()
    with pytest.raises(ValueError, match='needs an NCS4CVR with mask="lottery"'):
        search(learned, dataset)
    with pytest.raises(ValueError, match="needs a compiled model"):
        search(NCS4CVR(dataset.schema, mask="lottery", **SMALL), dataset)


def run_config(dataset, **changes) -> RunConfig:
    settings = {
        "model": "ncs4cvr",
        "arguments": {**SMALL, "mask": "lottery"},
        "data": str(dataset.folder),
        "epochs": 1,
        "batch_size": 512,
        "lottery": {"rounds": 1, "final_density": 0.5},
    }
    return RunConfig(**{**settings, **changes})


def test_a_run_draws_tickets_and_an_interrupted_one_ends_the_same(dataset, tmp_path):
    whole = train(run_config(dataset), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(run_config(dataset), tmp_path / "cut", callbacks=[Recorder(stop_at=3)])
    rest = Recorder()
    resumed = train(run_config(dataset), tmp_path / "cut", callbacks=[rest])
    assert len(rest.starts) == 1 + 1
    for a, b in zip(whole.model().get_weights(), resumed.model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    drawn = json.loads((whole.folder / "lottery.json").read_text())
    assert drawn["monitor"] == "loss"
    for t, (label, ticket) in enumerate(drawn["tasks"].items()):
        assert label == ["click", "conversion"][t]
        assert [r["density"] for r in ticket["rounds"]] == [1.0, 0.5]
        masks = [np.asarray(layer.masks())[t] for layer in trunk_of(whole.model())]
        density = sum(m.sum() for m in masks) / sum(m.size for m in masks)
        assert density == ticket["rounds"][ticket["chosen"]]["density"]
    assert not (whole.folder / "tickets").exists()


def test_the_paper_preset_trains(dataset, tmp_path):
    config = run_config(dataset, preset="paper", arguments=SMALL)
    assert config.alternate
    assert config.learning_rate == 1e-4
    assert config.lottery.rounds == 1  # given besides the preset
    assert config.arguments["losses"] == "paper"
    assert config.arguments["trunk_units"] == SMALL["trunk_units"]
    run = train(config, tmp_path / "run")
    assert open_run(run.folder).config == config
    model = run.model()
    assert model.optimizer.skip_zeros
    assert model.loss["click"].alpha == 0.75
    # Two steps for each batch: one for each task.
    assert int(model.optimizer.iterations) == 2 * int(dataset.read("train", 512).cardinality())


def test_unknown_presets_and_misplaced_settings_are_named(dataset, tmp_path):
    with pytest.raises(ValueError, match="mmoe has no preset 'paper'; it has none"):
        preset_of("mmoe", "paper")
    config = RunConfig(model="mmoe", data=str(dataset.folder), lottery={"rounds": 2})
    with pytest.raises(ValueError, match="the lottery settings are for ncs4cvr with mask=lottery; this is mmoe"):
        train(config, tmp_path / "run")
