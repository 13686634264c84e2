"""`mtlzoo explain` as a user types it, on real runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtlzoo.cli import INTERRUPTED, _Interrupted, _run
from mtlzoo.inspection import importance_numbers, mean_update_gates, permutation_importance, sharing, total
from mtlzoo.inspection.permuting import Predictions
from mtlzoo.training import Run, RunConfig, open_run, train

MTLZOO = Path(sys.executable).with_name("mtlzoo")
ARGUMENTS = {
    "ncs4cvr": {"trunk_units": [12, 6], "embedding_dim": 4, "l0": 1e-4},
    "shared_bottom": {"bottom_units": [8], "tower_units": [4], "embedding_dim": 4},
    "dcrnn": {"units": 12, "steps": 2, "tower_units": [4], "embedding_dim": 4, "histories": []},
}


def explain(*arguments: object) -> subprocess.CompletedProcess:
    done = subprocess.run([MTLZOO, "explain", *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def explain_here(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    """In this process, which has TensorFlow imported: standard output and error, on one line each."""
    try:
        done = _run(["explain", *map(str, arguments)], debug=False)
    except SystemExit as end:  # how the parser ends a command that went well
        done = int(end.code or 0)
    assert done == code
    shown = capsys.readouterr()
    return " ".join(shown.out.split()), " ".join(shown.err.split())


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    common = {"data": str(dataset.folder), "epochs": 1, "batch_size": 512}
    return {
        name: train(RunConfig(model=name, arguments=arguments, **common), folder / name)
        for name, arguments in ARGUMENTS.items()
    }


def test_it_prints_the_sharing_and_writes_the_report(runs, tmp_path):
    done = explain(runs["ncs4cvr"].folder, "--out", tmp_path / "report.html")
    layers = sharing(runs["ncs4cvr"].model())
    columns = [[layer.shares[p] for layer in (*layers, total(layers))] for p in ("click only", "shared", "dead")]
    for shares in columns:
        assert all(f"{share:.1%}" in done.stdout for share in shares)
    assert f"{layers[0].overlaps[0].jaccard:.3f}" in done.stdout
    assert "trunk_1" in done.stdout
    assert "report.html" in done.stderr
    assert "<h2>Heat maps</h2>" in (tmp_path / "report.html").read_text()


def test_json_holds_the_numbers_and_the_report_lies_in_the_run(runs):
    run = runs["ncs4cvr"]
    printed = json.loads(explain(run.folder, "--json").stdout)
    layers = sharing(run.model())
    assert printed["model"] == "ncs4cvr"
    assert Path(printed["report"]) == run.folder / "report.html"
    assert Path(printed["report"]).is_file()
    assert printed["layers"] == json.loads(json.dumps([layer.to_dict() for layer in layers]))
    assert printed["total"]["shares"] == total(layers).shares
    assert sum(field["connections"] for field in printed["fields"]) == layers[0].connections


def test_any_model_is_explained_by_the_importance_of_its_features(runs, tmp_path, capsys):
    shown, _ = explain_here(capsys, runs["shared_bottom"].folder, "--out", tmp_path / "report.html", "--repeats", 2)
    importance = permutation_importance(runs["shared_bottom"].model(), runs["shared_bottom"].dataset(), repeats=2)
    assert "drop of the AUC when a feature is permuted (test split)" in shown
    for task in importance.tasks.values():
        for feature in task.features:
            assert f"{feature.mean:.4f} +- {feature.high - feature.mean:.4f}" in shown
    assert "<h2>Feature importance</h2>" in (tmp_path / "report.html").read_text()


def test_update_gates_need_no_importance(runs, tmp_path, capsys):
    run, path = runs["dcrnn"], tmp_path / "report.html"
    updates = mean_update_gates(run.model(), run.dataset(), "valid")
    options = ["--no-importance", "--split", "valid", "--out", path]
    shown, _ = explain_here(capsys, run.folder, *options)
    assert "dcrnn: mean update gate in each step" in shown
    for step in range(2):
        means = [f"{gates[step].mean:.3f}" for gates in updates.parts.values()]
        assert f"{step + 1} │ {' │ '.join(means)}" in shown
    assert "<h2>What the recurrence lets through</h2>" in path.read_text()
    printed = json.loads(explain_here(capsys, run.folder, "--json", *options)[0])
    assert printed.keys() == {"model", "report", "updates"}
    assert printed["updates"] == json.loads(json.dumps(updates.to_dict()))


def test_options_reach_the_measurement(runs, tmp_path, capsys):
    run = runs["ncs4cvr"]
    options = ["--split", "valid", "--measure", "log_loss", "--repeats", 1, "--max-rows", 500]
    shown, _ = explain_here(capsys, run.folder, "--json", "--out", tmp_path / "r.html", *options)
    printed = json.loads(shown)
    importance = permutation_importance(run.model(), run.dataset(), "valid", "log_loss", repeats=1, max_rows=500)
    assert printed["importance"] == json.loads(json.dumps(importance_numbers(importance)))
    assert printed["importance"]["tasks"].keys() == {"click", "conversion", "ctcvr"}
    assert len(printed["layers"]) == 2


def test_masks_alone_need_no_data(runs, tmp_path, capsys):
    """The run's directory and nothing else: its dataset is gone."""
    moved = without_data(runs["ncs4cvr"], tmp_path)
    printed = json.loads(explain_here(capsys, moved, "--json", "--no-importance")[0])
    assert printed.keys() == {"model", "report", "layers", "total", "fields"}
    report = (moved / "report.html").read_text()
    assert "<h2>Sharing by layer</h2>" in report
    assert "Feature importance" not in report


def without_data(run: Run, folder: Path) -> Path:
    shutil.copytree(run.folder, folder / "run")
    path = folder / "run/config.json"
    saved = json.loads(path.read_text())
    saved["training"]["data"] = str(folder / "gone")
    path.write_text(json.dumps(saved))
    return folder / "run"


def test_what_cannot_be_explained_is_one_message(runs, dataset, tmp_path, capsys):
    for name in runs:
        (tmp_path / name).mkdir()
    masked, plain, gated = (without_data(runs[name], tmp_path / name) for name in ARGUMENTS)
    gone = "the dataset of this run is gone; say where it is with --data DIR"
    data = ["--data", dataset.folder]
    for arguments, message in (
        ([tmp_path / "no"], "there is no such run directory"),
        ([masked], f"{gone}, or explain the masks alone with --no-importance"),
        ([plain], gone),
        ([gated, "--no-importance"], gone),
        ([plain, "--no-importance"], "shared_bottom has nothing to explain without the importance"),
        ([plain, "--data", tmp_path / "no"], "there is no such dataset directory"),
        ([plain, *data, "--split", "tset"], "has no split 'tset'"),
        ([plain, *data, "--measure", "gini"], "measure must be one of auc, log_loss, is 'gini'"),
        ([plain, *data, "--out", tmp_path], "is a directory; name the file to write"),
    ):
        printed, shown = explain_here(capsys, *arguments, code=1)
        assert message in shown
        assert ("--no-importance" in shown) == (arguments == [masked])
        assert printed == ""
    assert not (plain / "report.html").exists()


def test_a_moved_dataset_is_named(runs, dataset, tmp_path, capsys):
    moved = without_data(runs["shared_bottom"], tmp_path)
    explain_here(capsys, moved, "--data", dataset.folder, "--repeats", 1, "--max-rows", 100)
    assert open_run(moved).config.data == str(tmp_path / "gone")
    assert "<h2>Divergence between tasks</h2>" in (moved / "report.html").read_text()


def test_it_can_be_interrupted(runs, tmp_path, capsys, monkeypatch):
    """While features are permuted; how a signal becomes an interruption is tested with training."""

    def interrupt(self, rows):
        raise _Interrupted

    monkeypatch.setattr(Predictions, "_advance", interrupt)
    path = tmp_path / "report.html"
    printed, shown = explain_here(capsys, runs["shared_bottom"].folder, "--out", path, code=INTERRUPTED)
    assert "interrupted; nothing older was touched" in shown
    assert printed == ""
    assert not path.exists()
