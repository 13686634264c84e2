"""The command line: `mtlzoo COMMAND`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


class _Interrupted(BaseException):
    """Ctrl-C or a request to terminate; to a KeyboardInterrupt the command parser would answer `Aborted!`."""

    came = False


def main() -> None:
    """Runs the command line; every error is one readable message and a non-zero exit code.

    `--debug` anywhere on the line shows the traceback instead.
    """
    # TensorFlow reads these at its import: its start-up notes are no business of a user of this tool.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    sys.exit(_run(arguments, debug))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _Interrupted.came = True
    raise _Interrupted


def _run(arguments: list[str], debug: bool) -> int:
    from mtlzoo.cli.app import app

    try:
        app(arguments, prog_name="mtlzoo")
    except (_Interrupted, Exception) as error:
        # TensorFlow's bindings turn an interruption that reaches them into an error of their own.
        if isinstance(error, _Interrupted) or _Interrupted.came:
            _print_error("interrupted; nothing older was touched, the same command goes on from what this one finished")
            return INTERRUPTED
        if debug:
            raise
        expected = isinstance(error, ValueError | OSError | FloatingPointError)
        _print_error(str(error) if expected else f"unexpected {type(error).__name__}: {error} (--debug shows where)")
        return 1
    return 0


def _print_error(message: str) -> None:
    from mtlzoo.cli.console import print_error

    print_error(message)
