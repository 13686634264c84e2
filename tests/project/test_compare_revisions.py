"""Paired runs of two states of the sources: verdicts against closed forms, revisions of real git, tiny real runs."""

from __future__ import annotations

import argparse
import io
import math
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import ttest_1samp

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import compare_revisions
import own_speed
from compare_revisions import ComparisonError, State

TINY = compare_revisions._SMOKE
REVISIONS = {"one": "raise ImportError('state 1')", "two": "raise ImportError('state 2')"}


def git(folder: Path, *words: str) -> None:
    settings = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *settings, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A repository with two commits, tagged; the working tree is a third state."""
    if shutil.which("git") is None:
        pytest.skip("git is not there")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook's git must not be taken for that of this directory
    folder = tmp_path / "project"
    git(tmp_path, "init", "--quiet", "project")
    for tag, text in (*REVISIONS.items(), ("", "STATE = 3")):
        for package in compare_revisions.PACKAGES:
            (folder / package).mkdir(exist_ok=True)
            (folder / package / "__init__.py").write_text(text)
        if tag:
            git(folder, "add", "--all")
            git(folder, "commit", "--quiet", "--message", tag)
            git(folder, "tag", tag)
    monkeypatch.setattr(compare_revisions, "PROJECT", folder.resolve())
    return folder


def test_interval_is_that_of_the_t_test_on_logarithms():
    ratios = [1.02, 1.11, 1.07, 0.99, 1.05]
    interval, _ = compare_revisions.judge(ratios, 1.03)
    expected = ttest_1samp([math.log(ratio) for ratio in ratios], 0.0).confidence_interval()
    assert interval.low == pytest.approx(math.exp(expected.low))
    assert interval.high == pytest.approx(math.exp(expected.high))
    assert interval.mean == pytest.approx(math.prod(ratios) ** (1 / 5))


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.04] * 4, compare_revisions.SLOWER),  # the interval is a point
        ([1.03] * 4, compare_revisions.UNSEEN),
        ([1.02, 1.02, 1.021], compare_revisions.UNSEEN),  # surely above 1, but within the tolerance
        ([1.0, 1.2, 1.1, 1.3], compare_revisions.UNSEEN),  # the mean lies above, the interval does not
        ([1 / 1.04] * 4, compare_revisions.FASTER),
        ([2.0], compare_revisions.UNJUDGED),
    ],
)
def test_verdict_is_that_of_the_whole_interval(ratios, verdict):
    assert compare_revisions.judge(ratios, 1.03)[1] == verdict


def test_a_verdict_does_not_depend_on_which_state_is_called_new():
    ratios = [1.11, 1.08, 1.13]
    assert compare_revisions.judge(ratios, 1.03)[1] == compare_revisions.SLOWER
    assert compare_revisions.judge([1 / ratio for ratio in ratios], 1.03)[1] == compare_revisions.FASTER


def test_states_hold_what_was_committed_and_what_is_there(project, tmp_path):
    for revision, text in REVISIONS.items():
        state = compare_revisions.old_state(revision, tmp_path / revision)
        assert {(state.folder / package / "__init__.py").read_text() for package in compare_revisions.PACKAGES} == {
            text
        }
    state = compare_revisions.working_tree(tmp_path / "new")
    assert (state.folder / "mtlzoo" / "__init__.py").read_text() == "STATE = 3"


def test_an_unknown_revision_is_named(project, capsys):
    assert compare_revisions.main(["nonsense"]) == 2
    assert "git knows no revision 'nonsense' here" in capsys.readouterr().out


def test_a_revision_without_the_packages_is_named(project, tmp_path):
    git(project, "rm", "--quiet", "-r", "--cached", "pipelines")
    git(project, "commit", "--quiet", "--message", "without")
    with pytest.raises(ComparisonError, match="HEAD cannot be compared: .*pipelines"):
        compare_revisions.old_state("HEAD", tmp_path / "old")


def test_a_directory_that_is_no_checkout_is_named(project, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_revisions, "PROJECT", (project / "mtlzoo").resolve())  # within one, but not its top
    with pytest.raises(ComparisonError, match="is not a git checkout"):
        compare_revisions.old_state("one", tmp_path / "old")


def test_a_state_that_fails_is_named_with_the_end_of_its_output(project, capsys):
    assert compare_revisions.main(["one", "two", "--what", "convert", "--smoke"]) == 2
    text = capsys.readouterr().out
    assert 'pipelines/__init__.py", line 1' in "".join(text.split("\n"))
    assert "failed: prepare convert with the sources of one (" in text
    assert "exit 1: ImportError: state 1" in text


def test_sources_of_another_place_are_found_out(tmp_path, monkeypatch):
    def elsewhere(command, **_):
        out = Path(command[command.index("--out") + 1])
        out.write_text('{"cpu": 1.0, "wall": 1.0, "sources": ["/elsewhere", "/elsewhere"]}')
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(compare_revisions.subprocess, "run", elsewhere)
    with pytest.raises(ComparisonError, match="modules came from /elsewhere"):
        compare_revisions.run(State("one", "", tmp_path), "measure", "read", TINY)


def test_every_module_counts_as_a_source(tmp_path, monkeypatch):
    """An editable installation finds a module that a state lacks in the working tree, without a word."""
    import mtlzoo

    here = str(Path(mtlzoo.__file__).resolve().parents[1])
    assert own_speed.sources() == [here]
    stranger = types.ModuleType("pipelines.stranger")
    stranger.__file__ = str(tmp_path / "pipelines" / "stranger.py")
    monkeypatch.setitem(sys.modules, "pipelines.stranger", stranger)
    assert own_speed.sources() == sorted([here, str(tmp_path.resolve())])


def test_rounds_alternate_and_ratios_are_new_over_old(tmp_path, monkeypatch):
    states, order = [State("old", "", tmp_path), State("new", "", tmp_path)], []

    def run(state, action, kind, sizes):
        if action == "prepare":
            return {}
        order.append((kind, state.name))
        return {"cpu": 2.2, "wall": 5.0} if state.name == "new" else {"cpu": 2.0, "wall": 5.0}

    monkeypatch.setattr(compare_revisions, "run", run)
    options = argparse.Namespace(what=["train", "read"], rounds=2, clock="cpu")
    pairs: dict = {}
    compare_revisions.measure_all(states, options, TINY, Console(quiet=True), pairs)
    kinds = [("train", "old"), ("train", "new"), ("read", "old"), ("read", "new")]
    assert order == kinds + [kinds[i] for i in (1, 0, 3, 2)]
    assert compare_revisions.ratios(pairs["train"], "cpu") == [pytest.approx(1.1)] * 2
    assert compare_revisions.ratios(pairs["train"], "wall") == [1.0] * 2
    console = Console(width=160, file=io.StringIO())
    console.print(compare_revisions.table_of(states, pairs, "cpu", 1.03))
    rows = [line for line in console.file.getvalue().splitlines() if "train" in line]
    assert "1.100 (1.100-1.100)" in rows[0]
    assert "slower" in rows[0]
    assert "1.000 (1.000-1.000)" in rows[1]


@pytest.mark.parametrize(("factor", "code"), [(1.1, 1), (1.0, 0)])
def test_the_exit_code_says_whether_something_is_slower(project, monkeypatch, factor, code):
    def run(state, action, kind, sizes):
        return dict.fromkeys(compare_revisions.CLOCKS, factor if state.name == "the working tree" else 1.0)

    monkeypatch.setattr(compare_revisions, "run", run)
    assert compare_revisions.main(["one", "--what", "read", "--rounds", "3"]) == code


def test_what_was_measured_before_ctrl_c_is_printed(project, monkeypatch, capsys):
    left = iter([{}, {}, *[{"cpu": 1.0, "wall": 1.0}] * 5])

    def run(*_):
        try:
            return next(left)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(compare_revisions, "run", run)
    assert compare_revisions.main(["one", "--what", "read"]) == 130
    assert "1.000 (1.000-1.000)" in capsys.readouterr().out


def test_too_few_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        compare_revisions.parse(["HEAD", "--rounds", "1"])
    assert "one round has no interval" in capsys.readouterr().err


@pytest.mark.parametrize("kind", own_speed.KINDS)
def test_every_kind_is_measured_by_both_clocks(tmp_path, kind):
    own_speed.PREPARE[kind](tmp_path, TINY)
    seconds = own_speed.MEASURE[kind](tmp_path, TINY)
    assert seconds.keys() == {"wall", "cpu"}
    assert min(seconds.values()) > 0.0


def test_another_model_is_trained_by_its_name(tmp_path, monkeypatch):
    import mtlzoo.models

    made = []
    create = mtlzoo.models.create
    monkeypatch.setattr(mtlzoo.models, "create", lambda name, schema: made.append(name) or create(name, schema))
    sizes = compare_revisions.parse(["HEAD", "--smoke", "--model", "shared_bottom"])[1]
    own_speed.prepare_train(tmp_path, sizes)
    assert own_speed.measure_train(tmp_path, sizes)["cpu"] > 0.0
    assert made == ["shared_bottom"]


def test_seconds_of_a_part_leave_the_first_call_out(monkeypatch):
    wall = iter([0.0, 10.0, 20.0, 40.0, 50.0, 60.0])  # three calls that count: 10, 20 and 10 seconds
    cpu = iter([100.0, 106.0])
    monkeypatch.setattr(own_speed.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(own_speed.time, "process_time", lambda: next(cpu))
    calls = []
    assert own_speed._each(lambda: calls.append(1), repeats=3, parts=4) == {"wall": 2.5, "cpu": 0.5}
    assert len(calls) == 4
