"""`python -m mtlzoo.zoo`: builds the trained models anew, and says whether they are what they were."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

INTERRUPTED = 130

_interrupted = False


def main(words: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        words: What stands behind the name of the command; `None`: `sys.argv`.

    Returns:
        0; 1 on an error, or where a metric is off by more than its tolerance; 130 when interrupted.
    """
    # TensorFlow reads these at its import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    from mtlzoo.cli.console import print_error

    try:
        return _build(words)
    except (KeyboardInterrupt, Exception) as error:
        # TensorFlow's bindings turn an interruption that reaches them into an error of their own.
        if isinstance(error, KeyboardInterrupt) or _interrupted:
            print_error("interrupted; finished models are in place, the same command goes on from there")
            return INTERRUPTED
        if not isinstance(error, ValueError | OSError | FloatingPointError):
            raise
        print_error(str(error))
        return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _build(words: list[str] | None) -> int:
    from mtlzoo.cli.quiet import import_tensorflow_quietly

    arguments = _arguments(words)
    import_tensorflow_quietly()
    from mtlzoo.cli.console import err, out
    from mtlzoo.zoo.build import build, write_pages
    from mtlzoo.zoo.compare import comparison_table, verdict
    from mtlzoo.zoo.plan import Plan

    def say(text: str) -> None:
        err.print(text, highlight=False, soft_wrap=True)

    if arguments.pages:
        for page in write_pages(arguments.out):
            out.print(str(page), highlight=False, soft_wrap=True)
        return 0
    plan = Plan()
    results = build(plan, arguments.only or list(plan.recipes), arguments.out, arguments.work, say)
    out.print(comparison_table(results))
    return _judged({name: verdict(old, new) for name, (old, new) in results.items()}, say)


def _judged(verdicts: dict[str, str], say: Any) -> int:
    """Says in a line whether all is as it was; the exit code."""
    different = [name for name, verdict in verdicts.items() if verdict == "different"]
    if different:
        say(
            f"DIFFERENT: {', '.join(different)}: a metric is off by more than its tolerance (docs/zoo.md). Where that "
            f"is meant (other defaults, another recipe), commit the new models; else restore the old ones and find why"
        )
        return 1
    words = {"identical": "have the same metrics to the last digit", "same": "are the same within the tolerance"}
    for kind, text in {**words, "new": "are new, there was nothing to compare with"}.items():
        names = [name for name, verdict in verdicts.items() if verdict == kind]
        if names:
            say(f"{', '.join(names)}: {text}")
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mtlzoo.zoo", description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a model of the zoo; several times; default: all"
    )
    parser.add_argument("--out", type=Path, default=Path("saved_models"), help="default: saved_models")
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="working directory; default: runs/zoo")
    parser.add_argument("--pages", action="store_true", help="only write README.md of each model from its card")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
