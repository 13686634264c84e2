"""A chief or a worker of a search: `python -m mtlzoo.tuning FOLDER TRIALS MINUTES`, started by `run_workers`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from mtlzoo.tuning.search import open_search


def _end_with_parent() -> None:
    """Ends this process as soon as its parent has: the pipe to its standard input is closed then."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock the end of the interpreter waits for
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Runs trials, or hands them out: KerasTuner's environment says which."""
    _end_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    folder, trials, minutes = arguments
    try:
        open_search(folder).run(int(trials), None if minutes == "none" else float(minutes))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("there is no further trial", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
