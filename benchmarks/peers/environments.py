"""Makes a virtual environment for each peer that training speed is compared with.

    python benchmarks/peers/environments.py [NAME ...] [--remake]

Names: torch_rechub, deepctr, tfrs; none given: all. The environments lie in `benchmarks/peers/.environments/NAME`, each
with the versions that stand in `ENVIRONMENTS`, from pip's usual configuration. What is complete is left as it is; what
was interrupted goes on. `--remake` begins anew. Two peers need none: `ours` and `keras_textbook` run in the Python that
runs the benchmark, so that both have the same TensorFlow and Keras and differ only in what is built with them.

- torch-rechub runs on the CPU build of PyTorch where pip finds one under the pinned version. Where it finds only the
  CUDA build, that one is taken with its CUDA packages (some GB); on a machine without a GPU it computes the same.
- DeepCTR 0.9.4 imports `tensorflow.python.keras`, which TensorFlow has up to 2.15, and that runs up to Python 3.11.
- TensorFlow Recommenders 0.7.7 needs the old Keras: the package tf-keras, and `TF_USE_LEGACY_KERAS=1` (its program sets
  it).

This file needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / ".environments"
COMMAND = "python benchmarks/peers/environments.py"
_READY = "ready.json"


@dataclass(frozen=True)
class Environment:
    """What one environment holds.

    Attributes:
        pins: Requirements for pip, with versions; the rest follows from them.
        imports: A line of Python that must run in it.
        newest_python: The last minor version of Python that has these packages.
    """

    pins: tuple[str, ...]
    imports: str
    newest_python: tuple[int, int] = (3, 13)


ENVIRONMENTS = {
    "torch_rechub": Environment(
        pins=(
            "torch-rechub==0.9.0",
            "torch==2.13.0",
            "numpy==2.3.5",
            "pandas==2.3.3",
            "scikit-learn==1.7.2",
            "tqdm==4.67.1",
        ),
        imports="from torch_rechub.models.multi_task import MMOE",
    ),
    "deepctr": Environment(
        pins=(
            "deepctr==0.9.4",
            "tensorflow-cpu==2.15.1",
            "keras==2.15.0",
            "numpy==1.26.4",
            "h5py==3.11.0",
            "protobuf==4.25.8",
            "requests==2.32.5",
        ),
        imports="import tensorflow.python.keras, h5py, requests",
        newest_python=(3, 11),
    ),
    "tfrs": Environment(
        pins=(
            "tensorflow-recommenders==0.7.7",
            "tensorflow==2.21.0",
            "tf-keras==2.21.0",
            "keras==3.15.1",
            "numpy==2.3.5",
        ),
        imports="import tensorflow_recommenders",
    ),
}


def python_of(name: str) -> Path | None:
    """The Python of a peer's environment; `None` while that is not complete or holds other versions."""
    if name not in ENVIRONMENTS:
        return Path(sys.executable)
    ready = FOLDER / name / _READY
    if not ready.is_file() or json.loads(ready.read_text(encoding="utf-8"))["pins"] != list(ENVIRONMENTS[name].pins):
        return None
    return _python(FOLDER / name)


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make(name: str, remake: bool = False) -> bool:
    """Makes an environment.

    Args:
        name: Of the environment.
        remake: Throw away what is there.

    Returns:
        Whether it is complete.
    """
    wanted, folder = ENVIRONMENTS[name], FOLDER / name
    if sys.version_info[:2] > wanted.newest_python:
        version = ".".join(map(str, wanted.newest_python))
        print(f"{name}: its packages run on Python {version} at most; run this file with such a Python")
        return False
    if remake:
        shutil.rmtree(folder, ignore_errors=True)
    if python_of(name) is not None:
        print(f"{name}: ready")
        return True
    print(f"{name}: installing {', '.join(wanted.pins)} (some minutes)", flush=True)
    (folder / _READY).unlink(missing_ok=True)
    if not _python(folder).exists():
        venv.create(folder, with_pip=True)
    pip = [str(_python(folder)), "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "install", "--quiet", *wanted.pins]).returncode != 0:
        print(f"{name}: pip failed, see above; `{COMMAND} {name}` goes on")
        return False
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if subprocess.run([str(_python(folder)), "-c", wanted.imports], env=environment).returncode != 0:
        print(f"{name}: installed, but `{wanted.imports}` fails, see above")
        return False
    frozen = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout.splitlines()
    ready = {"pins": wanted.pins, "python": sys.version.split()[0], "installed": frozen}
    (folder / _READY).write_text(json.dumps(ready, indent=1), encoding="utf-8")
    print(f"{name}: ready, {len(frozen)} packages")
    return True


def main() -> int:
    """Makes the environments that are asked for; 1 if one of them is not complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ENVIRONMENTS)}; none: all")
    parser.add_argument("--remake", action="store_true", help="throw away what is there")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(ENVIRONMENTS))
    if unknown:
        parser.error(f"no such environment: {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    complete = [make(name, arguments.remake) for name in arguments.names or ENVIRONMENTS]
    return 0 if all(complete) else 1


if __name__ == "__main__":
    sys.exit(main())
