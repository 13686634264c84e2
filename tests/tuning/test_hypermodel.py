"""Models as hypermodels: any of KerasTuner's tuners takes them, and their loss weights survive a tuner's compile."""

from __future__ import annotations

import keras_tuner
import numpy as np
import pytest
from searched_schema import schema_of

from mtlzoo.tuning import hypermodel, objective
from pipelines import Label

SMALL = {"bottom_units": [8], "tower_units": [4], "embedding_dim": 4}


def trained_loss_weights(model) -> dict[str, float]:
    return model.get_compile_config()["loss_weights"]


class Watched(keras_tuner.RandomSearch):
    """KerasTuner's tuner, which notes what models were trained with."""

    def run_trial(self, trial, *args, **kwargs):
        self.seen = getattr(self, "seen", [])
        fit = self.hypermodel.fit

        def watched(hp, model, *fit_args, **fit_kwargs):
            history = fit(hp, model, *fit_args, **fit_kwargs)
            self.seen.append((hp.values.copy(), model, history))
            return history

        self.hypermodel.fit = watched
        try:
            return super().run_trial(trial, *args, **kwargs)
        finally:
            self.hypermodel.fit = fit


def test_kerastuners_own_tuner_takes_it_as_it_is(dataset, tmp_path):
    made = hypermodel("shared_bottom", dataset.schema, ["learning_rate", "loss_weights.ctcvr", "dropout"], SMALL)
    # A tuner with an optimizer of its own compiles each model anew, without loss weights.
    tuner = Watched(
        made, objective("ctcvr", "auc"), max_trials=2, seed=1, optimizer="sgd", directory=tmp_path, project_name="own"
    )
    train = dataset.read("train", 512, shuffle=True, seed=1).take(4)
    tuner.search(train, validation_data=dataset.read("valid", 2048), epochs=1, verbose=0)
    assert len(tuner.seen) == 2
    for values, model, history in tuner.seen:
        assert model.optimizer.name.lower() == "sgd"
        rounded = made.space["loss_weights.ctcvr"].value(values["loss_weights.ctcvr"])
        assert trained_loss_weights(model) == {"click": 1.0, "conversion": 1.0, "ctcvr": rounded}
        logs = {name: values[-1] for name, values in history.history.items()}
        assert logs["loss"] == pytest.approx(logs["click_loss"] + rounded * logs["ctcvr_loss"], rel=1e-4)
        assert {"val_ctcvr_auc", "val_click_auc", "val_conversion_auc", "val_click_log_loss"} <= set(logs)
    scores = [trial.score for trial in tuner.oracle.get_best_trials(2)]
    assert scores == sorted((h.history["val_ctcvr_auc"][-1] for _, _, h in tuner.seen), reverse=True)


def test_logs_of_a_single_task_are_named_for_it_too():
    made = hypermodel("shared_bottom", schema_of((Label(name="click"),)), ["dropout"], SMALL)
    hp = keras_tuner.HyperParameters()
    model = made.build(hp)
    random = np.random.default_rng(1)
    features = {"categorical": random.integers(0, 20, (64, 2), "int32"), "numeric": np.ones((64, 1), "float32")}
    labels = {"click": random.integers(0, 2, (64, 1)).astype("float32")}
    history = made.fit(hp, model, features, labels, validation_data=(features, labels), verbose=0)
    assert history.history["val_click_auc"] == history.history["val_auc"]
    assert objective("click", "auc").has_value(history.history)


def test_values_are_the_same_in_every_process(dataset):
    made = hypermodel("mmoe", dataset.schema)
    hp = keras_tuner.HyperParameters()
    made.declare_hyperparameters(hp)
    hp.values |= {"learning_rate": 0.00037284619283, "num_experts": 5, "dropout": "0.3", "expert_units": "256-128"}
    carried = keras_tuner.HyperParameters.from_proto(hp.to_proto())
    assert made.values(carried) == made.values(hp)
    config = made.config(made.values(hp))
    assert config.learning_rate == 0.0003728
    assert config.arguments["expert_units"] == (256, 128)
    assert (config.arguments["num_experts"], config.arguments["dropout"]) == (5, 0.3)


def test_what_is_fixed_is_not_searched():
    made = hypermodel("mmoe", schema_of(), fixed={"dropout": 0.0, "loss_weights": {"ctcvr": 2.0}})
    assert "dropout" not in made.space
    assert not [name for name in made.space if name.startswith("loss_weights")]
    config = made.config({"num_experts": 3})
    assert config.loss_weights == {"ctcvr": 2.0}
    assert config.arguments == {"dropout": 0.0, "num_experts": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mmo"}, "there is no model 'mmo'; did you mean 'mmoe'?"),
        (
            {"search": ["num_expert"]},
            "no hyper-parameter of mmoe 'num_expert'; did you mean 'num_experts'?",
        ),
        ({"fixed": {"drop": 0.1}}, "no setting of mmoe to hold fixed 'drop'"),
        ({"fixed": {"alternate": True}}, "no setting of mmoe to hold fixed 'alternate'"),
        ({"fixed": {"learning_rate": -1}}, "learning_rate: Input should be greater than 0"),
        ({"fixed": {"dropout": 0.1}, "search": ["dropout"]}, "dropout: searched and fixed at once"),
        ({"fixed": {"loss_weights": {"ctcvr": 1}}, "search": ["loss_weights.ctcvr"]}, "searched and fixed at once"),
        ({"search": []}, "nothing is left to search"),
        ({"metrics": ["acu"]}, "no metric of model.fit 'acu'; did you mean 'auc'"),
        ({"name": "ncs4cvr", "fixed": {"mask": "lottery"}}, "tune ncs4cvr with mask=learned"),
    ],
)
def test_bad_input_is_one_message(arguments, message):
    with pytest.raises(ValueError) as error:
        hypermodel(**{"name": "mmoe", "schema": schema_of(), **arguments})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "search", "fixed"),
    [
        ("batch_size", ["batch_size"], {}),
        ("ema_momentum", ["ema_momentum"], {}),
        ("ema_momentum", ["dropout"], {"ema_momentum": 0.9}),
    ],
)
def test_what_takes_our_own_tuner_is_refused_by_others(dataset, name, search, fixed):
    made = hypermodel("shared_bottom", dataset.schema, search, {**SMALL, **fixed})
    hp = keras_tuner.HyperParameters()
    with pytest.raises(keras_tuner.errors.FatalValueError, match=f"{name} cannot be set for a tuner that is handed"):
        made.fit(hp, made.build(hp), dataset.read("train", 512))
