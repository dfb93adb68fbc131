# Everything a contributor or CI runs. Each target installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs

.PHONY: demo test test-all lint figures figures-two figures-three benchmark docs clean

demo: $(STAMP)
	$(BIN)/mirrorode run fig2 --quick

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Students of two and of three layers share no runs: with -j2 the two lists are drawn side by side.
TWO := table2 table3 table4 table5 fig3 fig5 fig6 fig7 sparse_to_dense fig1 statements \
	reparameterization table10
THREE := table6 table7 table8 fig8 fig9 fig10 fig11 fig12 fig13
BOTH := fig2 residuals kinks student fig4 fig14 table9

figures: figures-two figures-three
	for name in $(BOTH); do $(BIN)/mirrorode run $$name || exit 1; done

figures-two: $(STAMP)
	for name in $(TWO); do $(BIN)/mirrorode run $$name || exit 1; done

figures-three: $(STAMP)
	for name in $(THREE); do $(BIN)/mirrorode run $$name || exit 1; done

benchmark: $(STAMP)
	$(BIN)/python benchmarks/late_phase.py
	$(BIN)/python benchmarks/inclusion.py
	$(BIN)/python benchmarks/balance.py
	$(BIN)/python benchmarks/cosh.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/mirror_descent.py

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
