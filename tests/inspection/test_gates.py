"""Mean gate weights of a stand-in model whose weights are a known function of its inputs."""

from __future__ import annotations

import numpy as np
import pytest

from mtlzoo.inspection import has_gates, mean_gate_weights
from mtlzoo.inspection.importance_sections import gate_section
from mtlzoo.models import DTN, SharedBottom
from mtlzoo.tasks import tasks_of
from pipelines import DataError


class Gated:
    """A model of nothing but gates: the click looks at the first number, conversion at nothing."""

    name = "gated"

    def __init__(self, schema) -> None:
        self.schema = schema
        self.tasks = tasks_of(schema, "esmm_product")

    def gate_weights(self, features):
        first = 1 / (1 + np.exp(-features["numeric"][:, 0]))
        return {
            "click": {"click/gdcn": first, "shared/masknet": 1 - first},
            "conversion": {"conversion/gdcn": np.full(len(first), 0.25), "shared/masknet": np.full(len(first), 0.75)},
        }


@pytest.mark.parametrize("batch_size", [100, 10_000])
def test_means_are_over_the_tasks_own_population(dataset, batch_size):
    gates = mean_gate_weights(Gated(dataset.schema), dataset, "train", batch_size=batch_size)
    ((features, _, _),) = dataset.read("train", batch_size=10_000)
    first = 1 / (1 + np.exp(-features["numeric"].numpy()[:, 0].astype(float)))
    assert gates.split == "train"
    assert gates.modules == ("click/gdcn", "shared/masknet", "conversion/gdcn")
    assert gates.means["click"]["click/gdcn"] == pytest.approx(first.mean())
    assert gates.deviations["click"]["click/gdcn"] == pytest.approx(first.std())
    assert gates.means["conversion"] == pytest.approx({"conversion/gdcn": 0.25, "shared/masknet": 0.75})
    assert gates.deviations["conversion"] == pytest.approx({"conversion/gdcn": 0.0, "shared/masknet": 0.0})


def test_a_task_that_looks_at_its_inputs_is_weighed_on_its_rows(dataset):
    class OfConversion(Gated):
        def gate_weights(self, features):
            return {"conversion": super().gate_weights(features)["click"]}

    gates = mean_gate_weights(OfConversion(dataset.schema), dataset, "train")
    ((features, _, weights),) = dataset.read("train", batch_size=10_000)
    clicked = weights["conversion"].numpy()[:, 0] > 0
    first = 1 / (1 + np.exp(-features["numeric"].numpy()[clicked, 0].astype(float)))
    assert list(gates.means) == ["conversion"]
    assert gates.means["conversion"]["click/gdcn"] == pytest.approx(first.mean())


def test_a_sample_weighs_as_the_split(dataset):
    model = Gated(dataset.schema)
    whole = mean_gate_weights(model, dataset, "train").means["click"]["click/gdcn"]
    some = mean_gate_weights(model, dataset, "train", max_rows=1_000).means["click"]["click/gdcn"]
    assert some != whole
    assert some == pytest.approx(whole, abs=0.03)


def test_the_section_shows_every_weight(dataset):
    gates = mean_gate_weights(Gated(dataset.schema), dataset, "valid")
    section = gate_section(gates)
    (table,) = section.tables
    assert table.headings == ("module", "click", "conversion")
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["conversion/gdcn"] == ("-", "0.250 (deviation 0.000)")
    assert cells["shared/masknet"][0].startswith(f"{gates.means['click']['shared/masknet']:.3f} ")
    assert len(section.pictures) == 1


def test_gates_of_dtn_sum_to_one(dataset):
    """By the model's promise: a task's own group, and all others together."""
    model = DTN(dataset.schema, interactions=("gdcn", "masknet"), interaction_units=8, embedding_dim=4)
    gates = mean_gate_weights(model, dataset, "valid", max_rows=200)
    for task, means in gates.means.items():
        own = sum(mean for module, mean in means.items() if module.startswith(f"{task}/"))
        assert own == pytest.approx(1.0, abs=1e-5)
        assert sum(means.values()) - own == pytest.approx(1.0, abs=1e-5)
    assert gates.modules[:3] == ("click/gdcn", "click/masknet", "conversion/gdcn")


def test_what_has_no_gates_or_wrong_ones_is_refused(dataset, tmp_path):
    plain = SharedBottom(dataset.schema, bottom_units=(4,), tower_units=(4,), embedding_dim=2)
    assert not has_gates(plain)
    with pytest.raises(ValueError, match="shared_bottom has no gates to explain"):
        mean_gate_weights(plain, dataset)
    wrong = Gated(dataset.schema)
    wrong.gate_weights = lambda features: {"cart": {"cart/gdcn": np.ones(len(features["numeric"]))}}
    assert has_gates(wrong)
    with pytest.raises(ValueError, match="gated: has gate weights of 'cart', which is none of its tasks"):
        mean_gate_weights(wrong, dataset)
    other = Gated(dataset.schema.model_copy(update={"features": dataset.schema.features[1:]}))
    with pytest.raises(DataError, match="converted with other features"):
        mean_gate_weights(other, dataset)
