"""The last three notebooks, executed as they stand; see test_notebooks_1_to_4.py."""

from __future__ import annotations

import pytest
from notebook_rules import NOTEBOOKS, check_execution


@pytest.mark.parametrize("path", NOTEBOOKS[4:], ids=lambda path: path.stem)
def test_the_notebook_runs_and_its_outputs_are_not_stale(path, tmp_path):
    check_execution(path, tmp_path)
