"""`mtlzoo explain` as a user types it, on real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtlzoo.cli import _run
from mtlzoo.inspection import sharing, total
from mtlzoo.training import Run, RunConfig, train

MTLZOO = Path(sys.executable).with_name("mtlzoo")
ARGUMENTS = {
    "ncs4cvr": {"trunk_units": [12, 6], "embedding_dim": 4, "l0": 1e-4},
    "shared_bottom": {"bottom_units": [8], "tower_units": [4], "embedding_dim": 4},
}


def explain(*arguments: object) -> subprocess.CompletedProcess:
    done = subprocess.run([MTLZOO, "explain", *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


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


def test_what_cannot_be_explained_is_one_message(runs, tmp_path, capsys):
    """In this process, which has TensorFlow imported."""
    for folder, message in (
        (runs["shared_bottom"].folder, "shared_bottom has no masks to explain"),
        (tmp_path / "no", "there is no such run directory"),
    ):
        assert _run(["explain", str(folder)], debug=False) == 1
        shown = capsys.readouterr()
        assert message in " ".join(shown.err.split())
        assert shown.out == ""
    assert not (runs["shared_bottom"].folder / "report.html").exists()
