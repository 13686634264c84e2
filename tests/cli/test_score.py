"""`mtlzoo score` as a user types it, on a real run."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet
import pytest

import mtlzoo.scoring
from mtlzoo.cli import INTERRUPTED, _Interrupted, _run
from mtlzoo.training import Run, RunConfig, train
from pipelines import convert, open_dataset
from pipelines.schema import Schema

WITHOUT = ("previous_item", "history")


def score_here(capsys, *arguments: object, code: int = 0) -> str:
    """In this process, which has TensorFlow imported: standard error, on one line."""
    try:
        done = _run(["score", *map(str, arguments)], debug=False)
    except SystemExit as end:  # how the parser ends a command that went well
        done = int(end.code or 0)
    shown = capsys.readouterr()
    assert done == code, shown.err
    assert shown.out == ""
    return " ".join(shown.err.split())


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Run:
    """It does not see all features of its dataset."""
    arguments = {"bottom_units": [8], "tower_units": [4], "embedding_dim": 4}
    config = RunConfig(
        model="shared_bottom",
        arguments=arguments,
        data=str(dataset.folder),
        epochs=1,
        batch_size=256,
        learning_rate=0.01,
        without=WITHOUT,
    )
    return train(config, tmp_path_factory.mktemp("runs") / "run")


def test_a_run_scores_its_test_split(run, dataset, tmp_path, capsys):
    out = tmp_path / "scores.parquet"
    shown = score_here(capsys, run.folder, "--out", out)
    assert f"scores: {out} ({dataset.rows('test'):,} rows)" in shown
    table = pyarrow.parquet.read_table(out)
    expected = run.model().predict(run.dataset().read("test", batch_size=512), verbose=0)
    assert table.num_rows == dataset.rows("test")
    for task, probabilities in expected.items():
        np.testing.assert_allclose(table[f"p_{task}"].to_numpy(), probabilities[:, 0], rtol=0, atol=1e-6)


def test_all_splits_of_another_dataset(run, rows_dataset, tmp_path, capsys):
    out = tmp_path / "scores.parquet"
    score_here(capsys, run.folder, "--data", rows_dataset.folder, "--out", out, "--split", "all", "--batch-size", 1_000)
    table = pyarrow.parquet.read_table(out)
    for split in ("train", "valid", "test"):
        rows = table.filter(pyarrow.compute.field("split") == split)["row"].to_pylist()
        assert rows == list(range(rows_dataset.rows(split)))
    assert table.num_rows == 6_000


def test_what_cannot_be_scored_is_one_message(run, dataset, raw_log, demo_schema, tmp_path, capsys):
    plain = demo_schema.to_dict()
    features = {feature["name"]: feature for feature in plain["features"]}
    features["device"]["hash_buckets"] = 8
    plain["features"] = [feature for name, feature in features.items() if name != "price"]
    other = open_dataset(convert([raw_log.parquet], Schema.model_validate(plain), tmp_path / "other"))
    out = tmp_path / "s.parquet"
    for arguments, message in (
        ([tmp_path / "no", "--out", out], "there is no such run directory"),
        ([run.folder, "--out", out, "--data", tmp_path / "no"], "there is no such dataset directory"),
        ([run.folder, "--out", out, "--data", other.folder], "it lacks price; declared otherwise: device"),
        ([run.folder, "--out", out, "--split", "tset"], "has no split 'tset'; it has train, valid, test"),
        ([run.folder, "--out", tmp_path], "is a directory; name the file to write"),
        ([run.folder, "--out", tmp_path / "scores.txt"], "must end in one of .parquet"),
    ):
        assert message in score_here(capsys, *arguments, code=1)
    assert not out.exists()


def test_it_can_be_interrupted(run, tmp_path, capsys, monkeypatch):
    """While a batch is made into rows; how a signal becomes an interruption is tested with training."""

    def interrupt(values):
        raise _Interrupted

    out = tmp_path / "scores.parquet"
    out.write_text("older")
    monkeypatch.setattr(mtlzoo.scoring, "_numpy", interrupt)
    shown = score_here(capsys, run.folder, "--out", out, code=INTERRUPTED)
    assert "interrupted; nothing older was touched" in shown
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
