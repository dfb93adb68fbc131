# Everything a contributor or CI runs. Each target installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs

.PHONY: demo test test-all lint figures benchmark docs clean

demo: $(STAMP)
	$(BIN)/mirrorode run fig2 --quick

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

figures: $(STAMP)
	for name in fig1 fig2 statements reparameterization table10; do $(BIN)/mirrorode run $$name || exit 1; done

benchmark: $(STAMP)
	$(BIN)/python benchmarks/late_phase.py
	$(BIN)/python benchmarks/inclusion.py
	$(BIN)/python benchmarks/balance.py
	$(BIN)/python benchmarks/cosh.py

docs: $(STAMP) $(DOCS_STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) runs docs/_build

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $(DOCS_STAMP)
