"""What is committed of the notebooks: executed in order, with pictures, small, and nothing of the machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import nbformat
import pytest
from notebook_rules import MOST_BYTES, NOTEBOOKS, code_cells, faults, faults_of, rebuild
from typer.main import get_command

from mtlzoo.cli.app import app

README = rebuild.HERE / "README.md"
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_seven_in_order_and_the_readme_names_each():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number}_" for number in range(1, 8)]
    assert re.findall(r"\]\((\w+\.ipynb)\)", README.read_text(encoding="utf-8")) == [path.name for path in NOTEBOOKS]


@every_notebook
def test_every_cell_was_executed_in_order_and_shows_nothing_of_the_machine(path):
    notebook = rebuild.read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert faults(notebook) == []


@every_notebook
def test_it_has_pictures_and_is_small(path):
    outputs = [output for cell in code_cells(rebuild.read(path)) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < MOST_BYTES


@every_notebook
def test_metadata_are_those_of_the_language_alone(path):
    notebook = rebuild.read(path)
    nbformat.validate(notebook)
    assert notebook.metadata == rebuild.METADATA
    assert [cell.id for cell in notebook.cells if cell.metadata or not cell.id] == []
    assert [output for cell in code_cells(notebook) for output in cell.outputs if output.get("metadata")] == []


@every_notebook
def test_the_text_stays_in_the_repository(path):
    """Sources name no path of a machine, links lead to files that exist, and no cell imports from beside it."""
    for cell in rebuild.read(path).cells:
        assert [fault for fault in faults_of(cell.source) if "path" in fault or "host" in fault] == []
        for link in re.findall(r"\]\(([^)#]+)\)", cell.source) if cell.cell_type == "markdown" else ():
            assert (path.parent / link).exists(), link
        assert "import rebuild" not in cell.source


@every_notebook
def test_the_commands_for_real_size_exist(path):
    text = "\n".join(cell.source for cell in rebuild.read(path).cells if cell.cell_type == "markdown")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    assert lines
    for line in lines:
        command, (name, *words) = get_command(app), shlex.split(line)
        assert name == "mtlzoo"
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@every_notebook
def test_a_cell_that_draws_is_short(path):
    for cell in code_cells(rebuild.read(path)):
        if "plt.subplots" in cell.source:
            assert len(cell.source.splitlines()) <= 14, cell.id
        assert max(map(len, cell.source.splitlines())) <= 120, cell.id


@pytest.mark.parametrize(
    "text",
    [
        "PosixPath('/srv/shop/data')",
        "log in /tmp",
        "/home/somebody/log.csv, row 3",
        "<Figure at 0x7f9ce3585120>",
        "2026-03-01T12:30:00",
        "epoch took 3.2 s",
        "12/12 ━━━━━ 1s 5ms/step",
        "UserWarning: `shuffle=True` was passed",
        "WARNING:tensorflow:5 out of the last 5 calls",
        "listening on 127.0.0.1:40123",
        "\x1b[31mred\x1b[0m",
    ],
)
def test_what_must_not_be_committed_is_found(text):
    assert faults_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "<Figure size 700x320 with 1 Axes>",
        "click/masknet  0.52, a and/or b",
        "saved_models/shop/1/saved_model.pb",
        "warning: conversion dropped 9 of 30,000 rows",
        "2026-03-01,1996,laptop,games,17.08,shoes|wine,0,no,0",
        "split: {by: time, column: day, valid_from: 2026-03-23}",
        "AUC 0.747 over 155 positives in 784 held-out rows",
    ],
)
def test_what_may_be_committed_passes(text):
    assert faults_of(text) == []


def test_an_unknown_name_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rebuild.py", "8_nothing"])
    with pytest.raises(SystemExit):
        rebuild.main()
    assert "no such notebook: 8_nothing; there are 1_quick_start" in capsys.readouterr().err


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path, monkeypatch, capsys):
    cells = [nbformat.v4.new_code_cell("print('so far')"), nbformat.v4.new_code_cell("1 / 0")]
    path = Path(tmp_path / "1_broken.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    monkeypatch.setattr(rebuild, "HERE", tmp_path)
    monkeypatch.setattr("sys.argv", ["rebuild.py"])
    assert rebuild.main() == 1
    assert path.read_bytes() == before
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed
    assert printed.endswith("failed: 1_broken\n")
