"""What a command costs before it does anything: its line is read first, and Keras's extras stay unimported."""

from __future__ import annotations

import subprocess
import sys

import pytest

LINE = """
import sys
from mtlzoo.cli import main
sys.argv = ["mtlzoo", *{words}]
try:
    main()
except SystemExit as end:
    print(end.code, *sorted({{"tensorflow", "sklearn", "matplotlib"}} & set(sys.modules)))
"""


def ended(*words: str) -> str:
    """The last line of a process that ran the command: its exit code, and which of the slow modules it imported."""
    command = [sys.executable, "-c", LINE.format(words=words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


@pytest.mark.parametrize(("line", "code"), [("train mmoe --dat x", "2"), ("data convrt", "2"), ("tune --help", "0")])
def test_a_slip_and_help_are_answered_without_tensorflow(line, code):
    assert ended(*line.split()) == code


def test_a_command_imports_neither_scikit_learn_nor_matplotlib_which_import_later():
    assert ended("models") == "0 tensorflow"
    after = (
        "from mtlzoo.cli.quiet import import_tensorflow_quietly; import_tensorflow_quietly(); "
        "import keras, sklearn.base, matplotlib.pyplot"
    )
    subprocess.run([sys.executable, "-c", after], check=True)
