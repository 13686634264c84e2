"""TensorFlow without the notes that its libraries print when they start."""

from __future__ import annotations

import os
import sys
import tempfile


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow and finds its devices with the standard error of the process put aside.

    The notes come from C++ before its logging is set up, so no log level holds them back. If the import fails, what was
    put aside is printed.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
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
