"""Mean update gates of small DCRNNs: against gates that are known, and against numpy on the whole split."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from mtlzoo.inspection import StepGate, UpdateGates, has_update_gates, mean_update_gates
from mtlzoo.inspection.figures import image_of, task_colours
from mtlzoo.inspection.sample import draw_samples
from mtlzoo.inspection.update_sections import update_lines, update_section
from mtlzoo.models import DCRNN, SharedBottom
from pipelines import DataError, convert, open_dataset
from pipelines.schema import Schema

SMALL = {"units": 12, "sharing": 0.5, "steps": 2, "tower_units": (4,), "embedding_dim": 4, "histories": ()}


def known_gates(model: DCRNN) -> dict[str, np.ndarray]:
    """Sets kernels to 0 and the biases of update gates (GRU: the second of three) at random: `[steps, units]` by part.

    The gates are then the sigmoid of their biases, whatever the input.
    """
    random = np.random.default_rng(3)
    expected = {}
    for part in model.parts:
        layer = model.get_layer(f"{part}_cross")
        for weight in layer.weights:
            weight.assign(np.zeros(weight.shape))
        resets, biases, candidates = np.split(random.normal(size=layer.bias.shape), 3, axis=1)
        layer.bias.assign(np.concatenate([resets, biases, candidates], axis=1))
        expected[part] = 1 / (1 + np.exp(-biases))
    return expected


def reference(values: np.ndarray, weights: np.ndarray) -> StepGate:
    values = values.astype(float)
    means = np.average(values, axis=0, weights=weights)
    deviations = np.sqrt(np.average((values - means) ** 2, axis=0, weights=weights))
    return StepGate(means.mean(), np.quantile(means, 0.1), np.quantile(means, 0.9), deviations.mean())


def assert_same(gate: StepGate, expected: StepGate) -> None:
    for name in ("mean", "low", "high", "deviation"):
        assert getattr(gate, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-7), name


@pytest.fixture(scope="module")
def model(dataset) -> DCRNN:
    """Kernels far from 0: gates that depend on the impression."""
    model = DCRNN(dataset.schema, **SMALL)
    random = np.random.default_rng(1)
    for layer in model.layers:
        if layer.name.endswith(("_cross", "_transfer")) or layer.name.startswith("embedding"):
            for weight in layer.weights:
                weight.assign(random.normal(0, 0.4, weight.shape))
    return model


def test_constant_gates_are_the_sigmoid_of_their_biases(dataset):
    model = DCRNN(dataset.schema, tied=False, **SMALL)
    expected = known_gates(model)
    updates = mean_update_gates(model, dataset, "valid", max_rows=500)
    assert updates.split == "valid"
    assert (updates.axis, updates.steps) == ("depth", ("1", "2"))
    assert list(updates.parts) == ["shared", "click", "conversion"]
    for part, steps in expected.items():
        for gate, units in zip(updates.parts[part], steps, strict=True):
            assert_same(gate, StepGate(units.mean(), np.quantile(units, 0.1), np.quantile(units, 0.9), 0.0))


def test_each_part_is_measured_on_its_own_population(dataset, model):
    updates = mean_update_gates(model, dataset, "train")
    ((features, _, weights),) = dataset.read("train", batch_size=10_000)
    every = np.ones(len(features["numeric"]))
    clicked = weights["conversion"].numpy()[:, 0]
    assert 0 < clicked.sum() < len(clicked)
    opened = model.update_gates(features)
    for part, rows in (("shared", every), ("click", every), ("conversion", clicked)):
        for gate, values in zip(updates.parts[part], opened[part], strict=True):
            assert_same(gate, reference(values.numpy(), rows))
    elsewhere = reference(opened["conversion"][0].numpy(), every)
    assert updates.parts["conversion"][0].mean != pytest.approx(elsewhere.mean, rel=1e-5)
    heard = reference(model.transfer_weights(features)["conversion"].numpy()[:, None], clicked)
    assert list(updates.transfer) == ["conversion"]
    assert updates.transfer["conversion"] == pytest.approx((heard.mean, heard.deviation), rel=1e-5)


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_batches_and_weights_of_a_sample(dataset, model, batch_size, monkeypatch):
    """Rows of a sample weigh as drawn, and no more than a batch of them is looked at at once."""
    looked_at = []
    measured = model.update_gates

    def spied(features):
        looked_at.append(len(features["numeric"]))
        return measured(features)

    monkeypatch.setattr(model, "update_gates", spied)
    updates = mean_update_gates(model, dataset, "train", max_rows=300, batch_size=batch_size, seed=7)
    samples = {sample.population: sample for sample in draw_samples(dataset, model.tasks, "train", 300, seed=7)}
    assert max(looked_at) <= batch_size
    assert sum(looked_at) == sum(len(sample.weights) for sample in samples.values())
    for part, population in (("shared", ()), ("click", ()), ("conversion", ("click",))):
        sample = samples[population]
        assert len(set(sample.weights.tolist())) > 1
        for gate, values in zip(updates.parts[part], measured(sample.features)[part], strict=True):
            assert_same(gate, reference(values.numpy(), sample.weights))


@pytest.mark.parametrize(
    ("arguments", "parts", "heard"),
    [
        ({"sharing": 1.0}, ["shared"], ["conversion"]),
        ({"sharing": 0.0, "transfer": False}, ["click", "conversion"], []),
        ({"cell": "lstm", "axis": "task"}, ["shared", "click", "conversion"], ["conversion"]),
        ({"axis": "field", "dtype": "mixed_float16"}, ["shared", "click", "conversion"], ["conversion"]),
    ],
)
def test_other_architectures(dataset, arguments, parts, heard):
    model = DCRNN(dataset.schema, **(SMALL | arguments))
    assert has_update_gates(model)
    updates = mean_update_gates(model, dataset, "valid", max_rows=100)
    assert list(updates.parts) == parts
    assert list(updates.transfer) == heard
    names = ("item", "previous_item", "category", "city", "device", "dwell", "tags", "history", "numeric")
    assert updates.steps == (names if arguments.get("axis") == "field" else ("1", "2"))
    ((features, _, _),) = dataset.read("valid", batch_size=10_000)
    assert {len(gates) for gates in model.update_gates(features).values()} == {len(updates.steps)}
    assert len(update_section(updates).tables) == (2 if heard else 1)


def test_fields_are_named_in_the_order_in_which_they_are_read(raw_log, demo_schema, tmp_path):
    """A field that changes leaves the gates of the steps before its own as they were."""
    plain = demo_schema.to_dict()
    next(feature for feature in plain["features"] if feature["name"] == "history")["ordered"] = True
    dataset = open_dataset(convert([raw_log.parquet], Schema.model_validate(plain), tmp_path / "ordered"))
    model = DCRNN(dataset.schema, **(SMALL | {"axis": "field", "histories": ["history:item"]}))
    steps = mean_update_gates(model, dataset, "valid", max_rows=100).steps
    assert len(steps) == len(set(steps)) == 10
    ((features, _, _),) = dataset.read("valid", batch_size=10_000)
    features = {name: values.numpy() for name, values in features.items()}
    before = model.update_gates(features)["shared"]

    def first_changed(**changed) -> str:
        after = model.update_gates(features | changed)["shared"]
        return steps[[np.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)].index(False)]

    for column, feature in enumerate(dataset.schema.packed_categorical):
        changed = features["categorical"].copy()
        changed[:, column] = np.roll(changed[:, column], 1)
        assert first_changed(categorical=changed) == feature.name
    assert first_changed(tags=np.roll(features["tags"], 1, axis=0)) == "tags"
    assert first_changed(history=np.roll(features["history"], 1, axis=0)) == "history"
    assert first_changed(numeric=features["numeric"] + 1) == "numeric"
    backwards = {name: features[name][:, ::-1] for name in ("history", "history_weights")}
    assert first_changed(**backwards) == "history in order"  # pooled, it is what it was


def test_a_part_without_rows_is_left_out_and_colours_stay(dataset, model, monkeypatch):
    """Nothing was clicked: nothing is known of conversion."""
    monkeypatch.setattr("mtlzoo.inspection.updates.draw_samples", lambda *arguments: draw_samples(*arguments)[:1])
    updates = mean_update_gates(model, dataset, "valid", max_rows=100)
    assert list(updates.parts) == ["shared", "click"]
    assert updates.transfer == {}
    assert updates.labels == ("click", "conversion")


def test_a_model_without_gates_is_refused(dataset):
    plain = SharedBottom(dataset.schema, bottom_units=(4,), tower_units=(4,), embedding_dim=2)
    ungated = [DCRNN(dataset.schema, **SMALL, **arguments) for arguments in ({"cell": "vanilla"}, {"gates": "open"})]
    for model in (plain, *ungated):
        assert not has_update_gates(model)
        with pytest.raises(ValueError, match=f"{model.name} has no update gates to explain"):
            mean_update_gates(model, dataset)


def test_what_does_not_fit_is_refused(dataset, model):
    with pytest.raises(DataError, match="has no split 'tset'"):
        mean_update_gates(model, dataset, "tset")
    schema = dataset.schema.model_copy(update={"features": dataset.schema.features[1:]})
    with pytest.raises(DataError, match="converted with other features"):
        mean_update_gates(DCRNN(schema, **SMALL), dataset)


GATES = {
    "shared": (StepGate(0.2, 0.1, 0.3, 0.01), StepGate(0.4, 0.35, 0.5, 0.02)),
    "$conversion_1$": (StepGate(0.6, 0.5, 0.7, 0.0), StepGate(0.5, 0.2, 0.9, 0.25)),
}
UPDATES = UpdateGates(
    "test", "depth", ("1", "2"), ("click", "$conversion_1$"), GATES, {"$conversion_1$": (0.75, 0.125)}
)


def test_the_section_shows_every_number():
    section = update_section(UPDATES)
    gates, transfer = section.tables
    assert gates.headings == ("depth", "shared", "$conversion_1$")
    assert gates.rows == (
        ("1", "0.200 (0.100 to 0.300; deviation 0.010)", "0.600 (0.500 to 0.700; deviation 0.000)"),
        ("2", "0.400 (0.350 to 0.500; deviation 0.020)", "0.500 (0.200 to 0.900; deviation 0.250)"),
    )
    assert transfer.rows == (("$conversion_1$", "0.750", "0.125"),)
    assert "test split" in section.text
    assert len(section.pictures) == 1


def test_lines_and_bars_are_those_of_the_gates():
    figure = update_lines(UPDATES)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    colours = task_colours(UPDATES.labels)
    assert axes.lines[1].get_color() == colours["$conversion_1$"]
    assert axes.lines[0].get_color() not in colours.values()
    for line, bars, (part, gates) in zip(axes.lines, axes.collections, GATES.items(), strict=True):
        assert line.get_label() == part
        np.testing.assert_allclose(line.get_ydata(), [gate.mean for gate in gates])
        np.testing.assert_allclose(
            [segment[:, 1] for segment in bars.get_segments()], [(gate.low, gate.high) for gate in gates]
        )
        np.testing.assert_allclose([segment[0, 0] for segment in bars.get_segments()], line.get_xdata())
        np.testing.assert_array_equal(np.round(line.get_xdata()), [0, 1])
    assert ElementTree.fromstring(image_of(figure)).tag.endswith("svg")


def test_numbers_are_plain_data():
    plain = json.loads(json.dumps(UPDATES.to_dict()))
    assert plain["steps"] == ["1", "2"]
    assert plain["parts"]["shared"][1] == {"mean": 0.4, "low": 0.35, "high": 0.5, "deviation": 0.02}
    assert plain["transfer"] == {"$conversion_1$": {"mean": 0.75, "deviation": 0.125}}
