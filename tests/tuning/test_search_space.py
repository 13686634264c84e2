"""Search spaces: what each model declares is real, holds its default, and builds."""

from __future__ import annotations

import keras_tuner
import numpy as np
import pytest
from searched_schema import schema_of

from mtlzoo.models import MODELS, arguments_of
from mtlzoo.models.search_space import Choice, Range, search_space_of
from mtlzoo.training import RunConfig
from mtlzoo.tuning import hypermodel, known_dimensions
from pipelines import Label


@pytest.mark.parametrize("name", list(MODELS))
def test_a_space_names_arguments_and_holds_their_defaults(name):
    arguments = arguments_of(name)
    assert {"embedding_dim", "dropout"} < set(search_space_of(MODELS[name]))
    for argument, dimension in search_space_of(MODELS[name]).items():
        assert argument in arguments, argument
        assert arguments[argument] in dimension, argument


@pytest.mark.parametrize("name", list(MODELS))
def test_the_corners_of_a_space_build_and_compile(name):
    made = hypermodel(name, schema_of())
    for end in (0, 1):
        hp = keras_tuner.HyperParameters()
        made.declare_hyperparameters(hp)
        for key, dimension in made.space.items():
            corner = dimension.ends[end]
            hp.values[key] = dimension.text(corner) if isinstance(dimension, Choice) else corner
        model = made.build(hp)
        config = model.get_config()
        for key, dimension in search_space_of(MODELS[name]).items():
            assert dimension.text(config[key]) == dimension.text(dimension.ends[end]), key
        assert model.compiled
        # With nothing open between input and output, two impressions that differ in everything would look alike.
        features = {x.name: np.arange(2.0)[:, None].repeat(x.shape[1], 1).astype(x.dtype) for x in model.inputs}
        for task, probabilities in model(features).items():
            assert np.ptp(probabilities) > 0.0, task
        assert float(model.optimizer.learning_rate) == pytest.approx(made.space["learning_rate"].ends[end])


def test_settings_of_training_hold_their_defaults():
    dimensions = known_dimensions("mmoe", schema_of())
    for name in ("learning_rate", "optimizer", "batch_size"):
        assert RunConfig.model_fields[name].default in dimensions[name]


def test_all_trained_tasks_but_the_first_have_loss_weights():
    by_label_space = {
        space: [n for n in known_dimensions("mmoe", schema_of(), space) if n.startswith("loss_weights.")]
        for space in ("esmm_product", "cvr_clicked")
    }
    assert by_label_space == {"esmm_product": ["loss_weights.ctcvr"], "cvr_clicked": ["loss_weights.conversion"]}
    assert not [n for n in known_dimensions("mmoe", schema_of((Label(name="click"),))) if n.startswith("loss_")]


def test_a_choice_reads_what_it_writes():
    choice = Choice(((), (64,), (256, 128)))
    assert choice.texts == ("none", "64", "256-128")
    assert [choice.value(text) for text in choice.texts] == [(), (64,), (256, 128)]
    assert choice.value([256, 128]) == (256, 128)
    assert [choice.position(value) for value in choice.values] == [0.0, 0.5, 1.0]
    assert [True in Choice((False, True)), (32,) in choice] == [True, False]
    with pytest.raises(ValueError, match="'7' is none of none, 64, 256-128"):
        choice.value("7")
    with pytest.raises(ValueError, match="two different values"):
        Choice((0.1, 0.1))


def test_a_range_rounds_and_stays_within_its_bounds():
    rate = Range(1e-4, 1e-2, log=True)
    assert rate.value(0.00037284619283) == 0.0003728
    assert rate.value(0.0100004) == 0.01
    assert rate.position(1e-3) == pytest.approx(0.5)
    experts = Range(2, 8)
    assert (str(rate), str(experts)) == ("0.0001 to 0.01 (log)", "2 to 8")
    assert (experts.value(3.0), 2.5 in experts, 9 in experts, True in experts) == (3, False, False, False)
    with pytest.raises(ValueError, match="low below high"):
        Range(2, 2)
    with pytest.raises(ValueError, match="low above 0"):
        Range(0.0, 1.0, log=True)
