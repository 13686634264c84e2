"""The command line: `mtlzoo COMMAND`."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
USAGE = 2


def main() -> None:
    """Runs the command line; every error is one readable message and a non-zero exit code.

    `--debug` anywhere on the line shows the traceback instead.
    """
    # TensorFlow reads these at its import: its start-up notes are no business of a user of this tool.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    import click

    from mtlzoo.cli.app import app
    from mtlzoo.cli.console import print_error

    try:
        result = app(arguments, standalone_mode=False, prog_name="mtlzoo")
    except click.exceptions.Abort:
        return _interrupted()
    except click.ClickException as error:
        error.show()
        return USAGE
    except KeyboardInterrupt:
        return _interrupted()
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        print_error(str(error))
        return 1
    except Exception as error:
        if debug:
            raise
        print_error(f"unexpected {type(error).__name__}: {error} (--debug shows where)")
        return 1
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    from mtlzoo.cli.console import print_error

    print_error("interrupted; nothing older was touched, and the same command goes on where this one stopped")
    return INTERRUPTED
