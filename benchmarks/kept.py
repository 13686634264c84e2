"""Results that are kept, of which machine and sources they are; without TensorFlow, whose import takes seconds."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def machine() -> str:
    """Processor and number of cores, so that results of two machines are never mixed."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """The state of this project: the commit, and `-dirty` where files differ from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        return ""


def keep_result(path: Path, settings: Mapping[str, Any], result: Any) -> None:
    """Keeps a result in a JSON file under its settings and this machine, in place of an older one of the same."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept[json.dumps({**settings, "machine": machine()}, sort_keys=True)] = result
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    os.replace(temporary, path)
