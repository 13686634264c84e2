"""Every table of speed runs in its smoke version, on a copy of the project, and leaves no results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import smoke


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return smoke.copy_project(tmp_path_factory.mktemp("smoke") / "project")


@pytest.mark.parametrize("name", smoke.COMMANDS)
def test_a_benchmark_runs_and_leaves_no_results(copy, name):
    if name not in smoke.names():
        pytest.skip("git is not there")
    problem = smoke.run(name, copy)
    assert not problem, problem
    assert smoke.left_over(copy) == []


def test_benchmarks_run_without_scikit_learn(copy):
    """So it is in the smoke alone: it is installed, and Keras would import it."""
    command = [sys.executable, "-c", "import sklearn"]
    left_out = subprocess.run(command, env=smoke.environment(copy), cwd=copy, capture_output=True, text=True)
    assert "runs without scikit-learn" in left_out.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_what_fails_is_told_with_the_end_of_its_output(tmp_path, monkeypatch):
    programs = tmp_path / "benchmarks"
    programs.mkdir()
    (programs / "broken.py").write_text("print('beginning\\n' * 1000)\nraise SystemExit('the end')")
    monkeypatch.setitem(smoke.COMMANDS, "broken", "--smoke")
    problem = smoke.run("broken", tmp_path)
    assert problem.endswith("the end\nexit 1")
    assert problem.count("\n") < 40
