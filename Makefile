# make help says what there is.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PARALLEL := -n auto --maxprocesses 8 --dist loadfile  # a process for each core, a file of tests at a time

.PHONY: help setup train test test-slow test-all reliability check bench bench-gpu gpu-check clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY) ## make .venv and install mcls and its tools in it

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: $(READY) ## train the default (blobs, mlp) on the CPU
	@$(BIN)/mcls train

test: $(READY) ## the tests, without the slow ones and those on real data
	$(BIN)/pytest $(PARALLEL) -m 'not slow and not real'

test-slow: $(READY) ## the others: the slow ones and those on real data
	$(BIN)/pytest $(PARALLEL) -m 'slow or real'

test-all: $(READY) ## all tests, the slow ones and those on real data too
	$(BIN)/pytest $(PARALLEL)

reliability: $(READY) ## every promise of RELIABILITY.md with its full number of cases; writes that page
	MCLS_RELIABILITY=full $(BIN)/pytest tests/reliability

check: $(READY) ## format, lint, types, and the size of the package
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python tests/size.py

bench: $(READY) ## measure mcls beside the bare loop and its peers; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/bench.py

bench-gpu: $(READY) ## the same on a GPU, with the time to 94 % on CIFAR-10
	$(BIN)/python benchmarks/bench.py --device cuda

gpu-check: $(READY) ## what only a GPU can show: its tests, short recipes, the short benchmark; under 8 minutes
	$(BIN)/python benchmarks/gpu_check.py

clean: ## remove .venv and what tools left behind; outputs/ and data/ stay
	rm -rf .venv build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
