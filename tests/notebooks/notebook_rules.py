"""What holds for every notebook, and how a fresh execution is compared with what was committed."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

from nbformat import NotebookNode

sys.path.append(str(Path(__file__).parents[2] / "notebooks"))

import rebuild

NOTEBOOKS = rebuild.paths()
MOST_BYTES = 300_000
# What differs from one machine or one execution to the next, or is noise.
FORBIDDEN = {
    "absolute path": r"(?<![\w./:\\])/(?:[A-Za-z_][\w.-]*/|(?:tmp|home|usr|var|opt)\b)|site-packages",
    "drive": r"\b[A-Z]:\\",
    "clock time": r"\b\d\d?:\d\d(?::\d\d)?\b",
    "duration": r"\b\d+(?:\.\d+)? ?(?:s|ms|us|µs|sec|secs|seconds|minutes|min)\b|\bETA\b|/step\b|/s\b",
    "progress bar": r"[━█▏▎▍▌▋▊▉\r]|\d%\|",
    "terminal colour": r"\x1b\[",
    "warning": r"\w*Warning\b|\bWARNING\b|Traceback",
    "memory address": r"\b0x[0-9a-fA-F]{5,}",
    "port": r"(?:127\.0\.0\.1|localhost):\d+",
}


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Its cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell: NotebookNode) -> list[str]:
    """All text that a cell has put out; pictures aside."""
    texts = [output.text for output in cell.outputs if output.output_type == "stream"]
    shown = [output.data for output in cell.outputs if "data" in output]
    return texts + [str(value) for data in shown for mime, value in data.items() if not mime.startswith("image/")]


def faults_of(text: str) -> list[str]:
    """What a text holds that must not be committed, each with its name."""
    found = [f"{name}: {match.group()!r}" for name, rule in FORBIDDEN.items() for match in re.finditer(rule, text)]
    host = socket.gethostname()
    return found + ([f"host name: {host!r}"] if len(host) > 3 and re.search(rf"\b{re.escape(host)}\b", text) else [])


def faults(notebook: NotebookNode) -> list[str]:
    """What the outputs of a notebook hold that must not be committed."""
    found = []
    for cell in code_cells(notebook):
        found += [f"{cell.id}: {fault}" for text in texts_of(cell) for fault in faults_of(text)]
        found += [f"{cell.id}: {output.text}" for output in cell.outputs if output.get("name") == "stderr"]
        found += [f"{cell.id}: {output.evalue}" for output in cell.outputs if output.output_type == "error"]
    return found


def kinds(notebook: NotebookNode) -> dict[str, list[str]]:
    """By cell, its source's first line and what kinds of outputs it has."""
    return {
        f"{cell.id}: {cell.source.splitlines()[0]}": [
            output.get("name") or " ".join([output.output_type, *sorted(output.get("data", {}))])
            for output in cell.outputs
        ]
        for cell in code_cells(notebook)
    }


def check_execution(path: Path, scratch: Path) -> None:
    """Executes a notebook, and holds it against the committed one; nothing may be left behind.

    Args:
        path: The notebook.
        scratch: An empty directory.
    """
    committed = rebuild.read(path)
    fresh = rebuild.executed(path, scratch)
    assert faults(fresh) == []
    assert kinds(fresh) == kinds(committed), "the committed outputs are stale: make notebooks"
    left = [file.name for folder in ("work", "temporary") for file in (scratch / folder).iterdir()]
    assert left == []
