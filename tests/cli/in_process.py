"""A command in the test's own process: as `mtlzoo` runs it, without the seconds that importing TensorFlow takes."""

from __future__ import annotations

import contextlib
import io
import subprocess

from mtlzoo.cli import _run


def run_here(*arguments: object) -> subprocess.CompletedProcess:
    """Exit code and both outputs, as `subprocess.run` gives them."""
    words = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = _run(words, debug=False)
        except SystemExit as end:  # the command parser's way to end
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
