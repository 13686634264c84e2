"""The command line as a user types it, on real files.

Each kind of command runs once as a process of its own (`mtlzoo`); what varies its arguments runs in this process
(`here`), through the same function.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from in_process import run_here

from mtlzoo.cli.settings import parse_settings, parse_value
from mtlzoo.models import MODELS

MTLZOO = Path(sys.executable).with_name("mtlzoo")
SMALL = ["--set", "bottom_units=16", "--set", "tower_units=8,4", "--set", "embedding_dim=4"]


def mtlzoo(*arguments: object, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run([MTLZOO, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=600)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def here(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    done = run_here(*arguments)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def refused(*arguments: object, code: int = 1) -> str:
    return message_of(here(*arguments, code=code))


def message_of(done: subprocess.CompletedProcess) -> str:
    """The message of a command that must fail: no traceback, nothing on standard output."""
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """synth → convert → train, once."""
    folder = tmp_path_factory.mktemp("cli")
    here("data", "synth", folder / "raw", "--rows", 30_000, "--seed", 3)
    shown = mtlzoo(
        "data",
        "convert",
        folder / "raw/impressions.parquet",
        "--schema",
        folder / "raw/schema.yaml",
        "--out",
        folder / "data",
    )
    assert "train" in shown.stdout
    assert "columns that the schema does not name" not in shown.stderr
    mtlzoo(
        "train", "shared_bottom", "--data", folder / "data", "--out", folder / "run", "--epochs", 1, *SMALL,
        "--set", "learning_rate=2e-3", "--set", "loss_weights.click=0.5",
    )  # fmt: skip
    return folder


def test_synth_writes_log_schema_and_truth(work):
    assert {path.name for path in (work / "raw").iterdir()} >= {"impressions.parquet", "schema.yaml", "truth.parquet"}


def test_inspect_and_check(work):
    assert "train" in here("data", "inspect", work / "data").stdout
    report = json.loads(mtlzoo("data", "check", work / "data", "--json").stdout)
    assert all(finding["severity"] != "error" for finding in report["findings"])


def test_new_logs_converted_like_a_dataset_are_evaluated(work, tmp_path):
    log, like = work / "raw/impressions.parquet", ["--like", work / "data"]
    shown = here("data", "convert", log, *like, "--out", tmp_path / "again")
    assert "columns that the schema does not name" not in shown.stderr
    assert "test" in here("data", "inspect", tmp_path / "again").stdout
    found, wanted = (
        json.loads(here("evaluate", work / "run", "--data", data, "--json").stdout)
        for data in (tmp_path / "again", work / "data")
    )
    assert found["tasks"] == wanted["tasks"]
    plain = yaml.safe_load((work / "raw/schema.yaml").read_text())
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(plain | {"split": {"by": "files", "train": "-", "test": "*"}}))
    here("data", "convert", log, *like, "--schema", tmp_path / "schema.yaml", "--out", tmp_path / "all")
    evaluation = json.loads(here("evaluate", work / "run", "--data", tmp_path / "all", "--json").stdout)
    assert evaluation["rows"] == 30_000
    report = json.loads(here("data", "check", tmp_path / "all", "--json").stdout)
    empty = {finding["split"] for finding in report["findings"] if finding["kind"] == "empty_split"}
    assert empty == {"train", "valid"}


def test_what_cannot_be_converted_is_one_message(work, tmp_path):
    log = work / "raw/impressions.parquet"
    assert "give a schema (--schema), a dataset to convert like (--like), or both" in refused(
        "data", "convert", log, "--out", tmp_path / "out"
    )
    assert "which must stay as it is; choose another directory" in refused(
        "data", "convert", log, "--like", work / "data", "--out", work / "data/new"
    )


def test_train_keeps_the_settings(work):
    training = json.loads((work / "run/config.json").read_text())["training"]
    assert training["arguments"] == {"bottom_units": [16], "tower_units": [8, 4], "embedding_dim": 4}
    assert training["learning_rate"] == 0.002
    assert training["loss_weights"] == {"click": 0.5}


def test_a_run_that_sees_some_features_is_evaluated_exported_and_verified(work, tmp_path):
    sees = ["--set", "without=user_id,item_id"]
    here(
        "train", "shared_bottom", "--data", work / "data", "--out", tmp_path / "run", "--epochs", 1, *SMALL, *sees
    )  # fmt: skip
    json.loads(here("evaluate", tmp_path / "run", "--data", work / "data", "--json").stdout)
    version = here("export", tmp_path / "run", "--out", tmp_path / "served").stdout.strip()
    for of_run in ([], ["--run", tmp_path / "run"]):
        checks = json.loads(here("verify", version, "--data", work / "data", *of_run, "--json").stdout)["checks"]
        assert {check["name"]: check["ok"] for check in checks}["signatures agree"] is True
    assert "no feature itm" in refused(
        "train", "shared_bottom", "--data", work / "data", "--out", tmp_path / "other", "--set", "without=itm"
    )


def test_evaluate_prints_the_promised_json(work):
    evaluation = json.loads(mtlzoo("evaluate", work / "run", "--json").stdout)
    assert evaluation["split"] == "test"
    assert list(evaluation["tasks"]) == ["click", "conversion", "ctcvr"]
    keys = ["auc", "gauc", "log_loss", "normalized_entropy", "calibration", "ece", "rows", "positives"]
    for values in evaluation["tasks"].values():
        assert list(values) == keys
    assert evaluation["tasks"]["click"]["rows"] == evaluation["rows"]
    assert "ctcvr" in here("evaluate", work / "run", "--split", "valid", "--data", work / "data").stdout


def test_export_prints_the_version_directory(work):
    assert mtlzoo("export", work / "run", "--out", work / "served").stdout.strip() == str(work / "served" / "1")
    assert (work / "served" / "1" / "saved_model.pb").is_file()
    assert "this version exists" in refused("export", work / "run", "--out", work / "served", "--version", 1)


def test_models_lists_every_model_with_its_arguments_and_presets():
    shown = here("models").stdout
    assert all(f" {name} " in shown for name in MODELS)
    for name in ("num_experts=4", "preset=paper", "preset=authors_sister_code"):
        assert name in shown
    assert "…" not in shown


def test_bad_input_is_one_message_and_no_traceback(work, tmp_path):
    data = ["--data", work / "data", "--out", tmp_path / "run"]
    assert "there is no model 'mmo'; did you mean 'mmoe'" in refused("train", "mmo", *data)
    assert "no setting 'expertz'; its arguments: num_experts" in refused("train", "mmoe", *data, "--set", "expertz=3")
    assert "--set takes KEY=VALUE, got 'x'" in refused("train", "mmoe", *data, "--set", "x")
    assert "learning_rate" in refused("train", "mmoe", *data, "--set", "learning_rate=fast")
    assert "trains only click, ctcvr" in refused("train", "mmoe", *data, "--set", "loss_weights.conversion=2")
    lottery = ["train", "ncs4cvr", *data, "--set", "mask=lottery", "--set"]
    assert "lottery.rounds: Input should be greater than or equal to 1" in refused(*lottery, "lottery.rounds=0")
    assert "lottery.final_density: Input should be less than or equal to 1" in refused(
        *lottery, "lottery.final_density=2"
    )
    assert "the lottery settings are for ncs4cvr" in refused("train", "mmoe", *data, "--set", "lottery.rounds=3")
    assert "mmoe has no preset 'paper'; it has none" in refused("train", "mmoe", *data, "--set", "preset=paper")
    assert "no such dataset directory" in refused("train", "mmoe", "--data", tmp_path / "no", "--out", tmp_path / "run")
    assert "no such run directory" in refused("evaluate", tmp_path / "no")
    assert "has no split 'tset'" in refused("evaluate", work / "run", "--split", "tset")
    assert "preset='large' is unknown" in refused("data", "synth", tmp_path / "s", "--rows", 10, "--preset", "large")
    assert "No such option" in refused("train", "mmoe", "--dat", "x", code=2)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_training_goes_on(work, tmp_path):
    run = tmp_path / "run"
    settings = [*SMALL, "--epochs", "3", "--set", "patience=3", "--batch-size", "64"]
    command = ["train", "shared_bottom", "--data", work / "data", "--out", run, *settings]
    process = subprocess.Popen([MTLZOO, *map(str, command)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run.partial/state.json").is_file():
        assert process.poll() is None, "it must not end before it is interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "interrupted; nothing older was touched" in " ".join(shown.split())
    assert "Traceback" not in shown
    assert not run.exists()
    resumed = here(*command)
    assert "epoch 3" in resumed.stderr
    assert "epoch 1:" not in resumed.stderr
    assert len(json.loads((run / "history.json").read_text())) == 3


def test_debug_shows_where():
    done = mtlzoo("evaluate", "/nowhere/at/all", "--debug", code=1)
    assert "Traceback" in done.stderr


def test_help_is_quick_to_read():
    assert "convert" in mtlzoo("data", "--help").stdout
    assert "KEY=VALUE" in mtlzoo("train", "--help").stdout


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("1e-3", 0.001),
        ("256,128", [256, 128]),
        ("[64]", [64]),
        ("true", True),
        ("esmm_product", "esmm_product"),
    ],
)
def test_values_are_read_as_written(text, value):
    assert parse_value(text) == value


def test_settings_are_parted_between_model_and_training():
    arguments, training = parse_settings("mmoe", ["num_experts=8", "patience=3", "loss_weights.click=2"])
    assert arguments == {"num_experts": 8}
    assert training == {"patience": 3, "loss_weights": {"click": 2}}
    arguments, training = parse_settings(
        "ncs4cvr", ["mask=lottery", "lottery.rounds=2", "preset=paper", "alternate=no"]
    )
    assert arguments == {"mask": "lottery"}
    assert training == {"lottery": {"rounds": 2}, "preset": "paper", "alternate": False}


def test_the_demo_runs_the_whole_job(tmp_path):
    shown = mtlzoo("demo", "--rows", 100_000, "--epochs", 1, "--out", tmp_path).stdout
    assert "best reachable" in shown
    assert "saved model" in shown
    assert (tmp_path / "saved_models/mmoe/1/saved_model.pb").is_file()
    assert (tmp_path / "data/demo/manifest.json").is_file()


def test_an_interruption_that_a_library_turns_into_its_own_error_is_still_one():
    """TensorFlow's bindings do so when Ctrl-C comes while they hand an error to Python."""
    interrupted = """
import signal, sys
import mtlzoo.cli, mtlzoo.cli.app

def app(arguments, prog_name):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise RuntimeError("error_already_set") from error

mtlzoo.cli.app.app = app
mtlzoo.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("error: interrupted")
