"""The Python and the commands of the README and of the pages in docs, run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import convert, load_schema
from pipelines.synthetic import SyntheticFunnel

README = Path(__file__).parents[2] / "README.md"
PAGES = sorted((README.parent / "docs").glob("*.md"))
# Its examples need a server: tests/serving/test_serving_guide.py runs them.
SERVING_GUIDE = "serving.md"
MTLZOO = Path(sys.executable).with_name("mtlzoo")


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


EXAMPLES = [(page, code) for page in PAGES if page.name != SERVING_GUIDE for code in blocks("python", page)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `make demo` leaves behind, smaller."""
    folder = tmp_path_factory.mktemp("readme")
    SyntheticFunnel("small").write(folder / "data/raw", rows=60_000)
    convert(
        [folder / "data/raw/impressions.parquet"], load_schema(folder / "data/raw/schema.yaml"), folder / "data/demo"
    )
    return folder


def test_the_python_example_runs_as_it_stands(folder):
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (folder / "saved_models/mmoe/1/saved_model.pb").is_file()


@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=[page.name for page, _ in EXAMPLES])
def test_the_examples_of_the_pages_run_as_they_stand(folder, page, code):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_schema_example_is_a_schema(tmp_path):
    (text,) = blocks("yaml")
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    schema = load_schema(path)
    assert [target.name for target in schema.targets] == ["click", "conversion", "ctcvr"]


def test_every_command_of_the_pages_exists():
    text = "".join(page.read_text(encoding="utf-8") for page in (README, *PAGES))
    commands = set(re.findall(r"^mtlzoo ((?:data )?[\w-]+)", text, flags=re.MULTILINE))
    assert {"data convert", "data check", "data prepare", "train", "evaluate", "export"} <= commands
    for command in commands:
        done = subprocess.run([MTLZOO, *command.split(), "--help"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, command
        words = " ".join(re.findall(rf"^mtlzoo {command} (.*?)(?:  #|$)", text, flags=re.MULTILINE))
        for option in set(re.findall(r"--[a-z-]+", words)):
            assert option in done.stdout, f"{command} has no {option}"
