"""TensorFlow without the notes that its libraries print when they start."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand

# Keras imports these where they are installed, for wrappers and galleries that no command uses: a quarter of its start.
_UNUSED_BY_COMMANDS = ("sklearn", "matplotlib")


class TensorFlowCommand(TyperCommand):
    """A command that needs TensorFlow; its line is read first, so that a slip in it is answered at once."""

    def invoke(self, ctx: Any) -> Any:
        """Imports TensorFlow, then runs the command; `ctx` is the context of the command parser."""
        import_tensorflow_quietly()
        return super().invoke(ctx)


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow and finds its devices with the standard error of the process put aside.

    The notes come from C++ before its logging is set up, so no log level holds them back. If the import fails, what was
    put aside is printed. Keras's scikit-learn wrappers and image galleries are without their libraries in this process.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside, _hidden(_UNUSED_BY_COMMANDS):
        os.dup2(aside.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
            # Evaluating several models, each with a shorter last batch, is no reason to warn of retracing.
            tf.get_logger().setLevel("ERROR")
        except BaseException:
            os.dup2(kept, 2)
            aside.seek(0)
            sys.stderr.write(aside.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _hidden(modules: tuple[str, ...]) -> Iterator[None]:
    """Importing one of these fails inside, unless it was imported before; afterwards it works as ever."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
