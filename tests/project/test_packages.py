"""What importing the project does and does not do, and that each dependency is really there."""

from __future__ import annotations

import subprocess
import sys


def run_python(code: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_project_leaves_recommenders_and_legacy_keras_alone():
    code = (
        "import sys, mtlzoo, pipelines\n"
        "for name in mtlzoo.__all__: getattr(mtlzoo, name)\n"
        "print(sorted({'tensorflow_recommenders', 'tf_keras', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_mtlzoo_alone_imports_quickly():
    assert run_python("import sys, mtlzoo; print('tensorflow' in sys.modules)") == "False"


def test_recommenders_works_in_a_process_of_its_own():
    """TFRS is compared with in its own process, with the old Keras that it needs."""
    code = (
        "import tensorflow as tf, tensorflow_recommenders as tfrs\n"
        "layer = tfrs.layers.dcn.Cross()\n"
        "print(layer(tf.ones([2, 3])).shape)"
    )
    assert run_python(code, TF_USE_LEGACY_KERAS="1") == "(2, 3)"


def test_keras_tuner_imports():
    assert run_python("import keras_tuner; print(keras_tuner.Objective('x', 'max').direction)") == "max"


def test_an_unknown_module_is_named():
    code = "import mtlzoo\ntry: mtlzoo.modles\nexcept AttributeError as e: print(e)"
    assert "has no attribute 'modles'" in run_python(code)
