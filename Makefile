# Everything here sets itself up: git, make and a Python >= 3.12 are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= auto
SECONDS ?= 60
export PYTHONWARNDEFAULTENCODING =

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types bench bench-large fuzz docs browser wheel ci clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 12) else "refindex needs Python >= 3.12, but $(PYTHON) is %s: run make PYTHON=/path/to/python3.12" % sys.version.split()[0])'
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --editable . --group test --group lint --group docs
	@touch $(STAMP)

install: $(STAMP)  ## make .venv with refindex and its development tools

demo: $(STAMP)  ## write a small archive, index it, open it beside netCDF4, save a plot
	$(BIN)/python notebooks/demo.py

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(STAMP)  ## ruff, import-linter, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(STAMP)  ## rewrite the code in house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

$(VENV)/.bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable ".[bench]"
	@touch $@

bench: $(VENV)/.bench  ## measure beside kerchunk, VirtualiZarr and bare chunk_iter, print ratios, write docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks --markdown docs/benchmarks.md

bench-large: $(STAMP)  ## join, save and open 1, 10 and 100 million references: time and memory, write docs/many-references.md
	$(BIN)/python -m tests.benchmarks.large --markdown docs/many-references.md

$(VENV)/.fuzz: $(STAMP)
	@$(BIN)/python -m pip install --quiet --group fuzz || echo "atheris has no wheel for this Python: structured mutation alone"
	@touch $@

fuzz: $(VENV)/.fuzz  ## feed damaged and hostile bytes to every parser, each for SECONDS=60: executions, coverage, failures
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --jobs 2

docs: $(STAMP)  ## build the documentation, strictly
	$(BIN)/mkdocs build --strict
	@echo "documentation: site/index.html"

browser:  ## by npm: what the tests in Node and in a browser need; without it they are skipped
	npm install --prefix tests/serve/http/node --no-package-lock --no-fund --no-audit --loglevel=error

wheel: $(STAMP)  ## build the wheel, install it elsewhere, try it
	$(BIN)/python -m tests.wheel

ci: test lint types docs  ## what continuous integration runs

clean:  ## remove what the targets made
	rm -rf $(VENV) build dist site demo .pytest_cache .mypy_cache .ruff_cache
