# Needs Python 3.11, make and bash. The targets install everything else into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
WORKERS ?= auto
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv/peers/.installed
SITE := .venv/docs/.installed

# One thread for each test process: the processes use all cores, and sums depend on the number of threads.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: help venv demo docs test test-all campaign lint types pages check-results clean

help: ## list the targets
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## install the pinned dependencies into .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# The packages that parity tests compare with. They are in a separate folder, so that their own pins can't conflict with
# constraints.txt.
$(PEERS): tests/parity/peers.txt | $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@

demo: $(STAMP) ## train networks with and without HE on the digits, attack both, write report.html
	$(BIN)/advsphere demo

docs: $(SITE) ## build the documentation as pages in site/
	PYTHONPATH=$(dir $(SITE)) JUPYTER_PATH=$(dir $(SITE))share/jupyter NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict 2>&1 | { grep -v '^INFO' || true; }

$(SITE): docs/requirements.txt | $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(@D) -r $<
	@touch $@

test: lint types docs $(PEERS) ## lint, types, the documentation and the tests (about 10 minutes on 2 cores)
	$(PYTEST)

test-all: lint types $(PEERS) ## lint, types and all tests, the slow ones too; writes results/test-all.txt
	@mkdir -p results
	$(PYTEST) -m '' -rs --durations=20 2>&1 | sed -u 's|$(CURDIR)/||g; s|^rootdir: .*||' | tee results/test-all.txt

campaign: $(STAMP) ## kill, damage and disturb everything many times, and write the figures of docs/guarantees.md (hours)
	$(BIN)/python -m tests.campaign
	$(BIN)/python -m tests.campaign --page

lint: $(STAMP) ## check rules and formatting with ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## check types with mypy
	$(BIN)/mypy

pages: $(STAMP) ## write docs/results/ and the README's table from the evaluations in results/
	$(BIN)/advsphere results results --pages docs/results --into README.md

RUNS ?= runs
check-results: $(STAMP) ## recompute results/ from the ledgers in RUNS (runs), and list what has no ledger there
	$(BIN)/advsphere results results $(RUNS) --check

clean: ## remove the environment, caches and build output, but no runs
	rm -rf .venv .cache build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
