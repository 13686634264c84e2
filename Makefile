# make demo: the whole job on synthetic impressions; make test: the whole suite; make smoke: tiny runs of every
# benchmark of speed; make zoo: the trained models under saved_models, anew; make notebooks: the notebooks, executed anew.
# All install what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test smoke zoo notebooks lint format clean

demo: $(STAMP)
	$(BIN)/mtlzoo demo

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: $(STAMP)
	$(BIN)/python benchmarks/smoke.py

zoo: $(STAMP)
	$(BIN)/python -m mtlzoo.zoo

notebooks: $(STAMP)
	$(BIN)/python notebooks/rebuild.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
