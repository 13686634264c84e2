"""Trained models by name or directory, and what is said where there are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mtlzoo
from mtlzoo.models import MMoE, load
from mtlzoo.models.pretrained import directory_of
from pipelines import DataError

FOLDER = Path(__file__).parents[2] / "saved_models"


def test_a_name_is_looked_up_in_the_checkout():
    assert directory_of("mmoe-small") == FOLDER / "mmoe-small"
    assert mtlzoo.models.load is load


def test_a_directory_is_taken_as_it_is(tmp_path, monkeypatch):
    shutil.copytree(FOLDER / "mmoe-small", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "mine", Path("mine"), "./mine", str(tmp_path / "mine")):
        assert directory_of(name).resolve() == tmp_path / "mine"
    assert directory_of("mine", folder=tmp_path) == tmp_path / "mine"
    model = load("./mine")
    assert type(model) is MMoE
    assert model.compiled


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError) as caught:
        load("dtn_smal")
    assert str(caught.value) == (
        "there is no trained model 'dtn_smal'; did you mean 'dtn-small'? "
        "(known: dcrnn-small, dtn-small, mmoe-small, ncs4cvr-small)"
    )
    with pytest.raises(DataError, match=r"there is no trained model 'x' \(known: "):
        load("x")


def test_where_there_are_none_it_is_said_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"there are no trained models here.*folder=DIR.*`make zoo`"):
        load("dtn-small", folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no trained model \(no model.keras\)"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another program"])
def test_a_damaged_file_is_named(damage, tmp_path):
    content = (FOLDER / "mmoe-small/model.keras").read_bytes()
    (tmp_path / "hurt").mkdir()
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "of another program": b"PK" + content[2:-30]}
    (tmp_path / "hurt/model.keras").write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"hurt/model.keras: cannot be loaded: .*`make zoo`"):
        load("hurt", folder=tmp_path)
