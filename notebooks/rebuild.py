"""Executes the notebooks anew, in order, and writes them back with their outputs.

    python notebooks/rebuild.py [NAME ...]        (make notebooks)

Each notebook runs from top to bottom in a kernel of its own, in an empty temporary directory. What differs from one
execution to the next without saying anything (times, identifiers of cells, a kernel's details) is not written. A
notebook that fails is left as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_LAST_CHARACTERS = 2_000
_CELL_SECONDS = 600  # a cell that takes longer hangs, however busy the machine is


def paths() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(HERE.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    """A notebook as it lies there."""
    return nbformat.read(path, as_version=4)


def executed(path: Path, scratch: Path) -> NotebookNode:
    """Executes a notebook from top to bottom; the file stays as it is.

    Args:
        path: The notebook.
        scratch: A directory that exists and is empty. In it, the notebook runs in `work`, and has `temporary` for its
            temporary files: a notebook that cleans up leaves both empty.

    Returns:
        The notebook with its outputs.

    Raises:
        CellExecutionError: A cell failed.
        CellTimeoutError: A cell took ten minutes.
        DeadKernelError: The kernel died; the message ends with what it said last.
    """
    work, temporary = scratch / "work", scratch / "temporary"
    for folder in (work, temporary):
        folder.mkdir()
    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=_CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
        # What TensorFlow's C++ says when it starts goes into a file; what Python prints and warns of is kept.
        extra_arguments=["--IPKernelApp.capture_fd_output=False", "--HistoryManager.enabled=False"],
        record_timing=False,
        coalesce_streams=True,
    )
    said = scratch / "kernel.log"
    try:
        with said.open("w") as log:
            client.execute(env=_environment(scratch, temporary), stdout=log, stderr=log)
    except DeadKernelError as error:
        raise DeadKernelError(f"{error}\n{said.read_text(errors='replace')[-_LAST_CHARACTERS:]}") from None
    return tidied(notebook)


def _environment(scratch: Path, temporary: Path) -> dict[str, str]:
    # A backend that is set already would keep figures out of the notebook.
    kept = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    own = {"TMPDIR": str(temporary), "IPYTHONDIR": str(scratch / "ipython")}
    return {**kept, **own, "TF_CPP_MIN_LOG_LEVEL": "2"}


def tidied(notebook: NotebookNode) -> NotebookNode:
    """Leaves cells, outputs and the name of the language; all other metadata goes."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.metadata = nbformat.from_dict({})
        cell.id = f"cell-{number}"
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def write(notebook: NotebookNode, path: Path) -> None:
    """Writes a notebook by rename."""
    temporary = path.with_name(path.name + ".new")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)


def main() -> int:
    """Rebuilds the notebooks; 1 if one failed, 130 after Ctrl-C."""
    known = {path.stem: path for path in paths()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(known)}; none: all")
    names = [Path(name).stem for name in parser.parse_args().names]
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"no such notebook: {', '.join(unknown)}; there are {', '.join(known)}")
    failed = []
    for name in names or known:
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as scratch:
                write(executed(known[name], Path(scratch)), known[name])
        except (CellControlSignal, DeadKernelError) as error:
            failed.append(name)
            print(error)
        except KeyboardInterrupt:
            print("stopped")
            return 130
        print(f"{name}: {'failed' if name in failed else 'written'}, {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
