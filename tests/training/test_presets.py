"""Every preset is settings that its model and a run have, and DCRNN's is its authors' code of another model."""

from __future__ import annotations

import pytest

from mtlzoo.models import DCRNN, arguments_of
from mtlzoo.training import RunConfig
from mtlzoo.training.presets import PRESETS, preset_of

NAMES = [(model, name) for model, presets in PRESETS.items() for name in presets]


@pytest.mark.parametrize(("model", "name"), NAMES)
def test_a_preset_names_settings_that_exist(model, name):
    preset = preset_of(model, name)
    assert set(preset.arguments) <= set(arguments_of(model))
    config = RunConfig(model=model, preset=name, data="data")
    assert {key: config.arguments[key] for key in preset.arguments} == preset.arguments
    for key, value in preset.training.items():
        if key != "lottery":
            assert getattr(config, key) == value


def test_the_default_preset_of_dcrnn_is_what_it_has_without_one():
    default, plain = (RunConfig(model="dcrnn", data="data", **given) for given in ({"preset": "default"}, {}))
    assert default.model_dump(exclude={"preset"}) == plain.model_dump(exclude={"preset"})


def test_the_sister_code_has_a_head_for_click_and_conversion_both(dataset):
    preset = preset_of("dcrnn", "authors_sister_code")
    model = DCRNN(dataset.schema, units=8, **preset.arguments)
    assert {task.name for task in model.tasks if task.trained} == {"click", "ctcvr"}
    weights = {task: loss.pos_weight for task, loss in model.default_losses().items() if loss is not None}
    assert weights == {"click": 200.0, "ctcvr": 3000.0}
    assert (preset.training["learning_rate"], preset.training["batch_size"]) == (1e-4, 1024)
