# Needs Python 3.11, make and bash; everything else is installed into .venv by the targets themselves.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
WORKERS ?= auto
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv/peers/.installed

# One thread in each test process: the processes already fill the cores, and a fixed count keeps sums reproducible.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: help venv demo test test-all lint types pages check-results clean

help: ## list the targets
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## set up .venv with the pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# A folder of their own: the parity tests alone look into it, and what the peers pin can't clash with constraints.txt.
$(PEERS): tests/parity/peers.txt | $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@

demo: $(STAMP) ## train plain and hyperspherical networks on the digits, attack both, write report.html
	$(BIN)/advsphere demo

test: lint types $(PEERS) ## lint, types and the tests (at most 12 minutes on 2 cores)
	$(PYTEST)

test-all: lint types $(PEERS) ## everything, also the slow tests; the output goes to results/test-all.txt
	@mkdir -p results
	$(PYTEST) -m '' -rs --durations=20 2>&1 | sed -u 's|$(CURDIR)/||g; s|^rootdir: .*||' | tee results/test-all.txt

lint: $(STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## mypy --strict on src
	$(BIN)/mypy

pages: $(STAMP) ## write docs/results/ and the README's table anew from the rows in results/
	$(BIN)/advsphere results results --pages docs/results --into README.md

RUNS ?= runs
check-results: $(STAMP) ## recompute the rows in results/ whose ledgers are below RUNS (runs), and name the others
	$(BIN)/advsphere results results $(RUNS) --check

clean: ## remove the environment, the caches and build output (runs are kept)
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
