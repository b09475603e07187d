# `make demo` runs the main job, `make test` the tests; both set up first, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.rankwise-installed
# A file stays in one process: what a file trains once, its tests share.
PARALLEL := -n 2 --dist loadfile
# Beside the environment, because PEFT imports both at every start where they are installed.
QUANTISED := .quantised

# Compiled files are kept: the tests start many processes, and each would compile the project again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-scale test-quantised check bench docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install everything, once

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): about 100 packages, 1 to 5 minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[demo,dev]" \
		| awk '/^(Collecting|Installing|Successfully)/ { printf "\r\033[K  %d packages  %.50s", n += /^Collecting/, $$0; fflush() } END { print "" }'
	@touch $@

demo: $(STAMP)  ## the main job: compare LoRA, AdaLoRA and GLoRA on real text
	@$(BIN)/rankwise compare

test: $(STAMP)  ## the tests (a few minutes, on two processes)
	@$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(STAMP)  ## the tests that take long
	@$(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder -m slow  # in the order of tests/conftest.py

test-scale: $(STAMP)  ## the tests of the engines, with Ray and submitit installed
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[demo,dev,scale]"
	@$(BIN)/python -m pytest tests/experiments/engines -m "slow or not slow"

test-quantised: $(STAMP)  ## the tests on quantised models; puts bitsandbytes and torchao into .quantised
	@test -d $(QUANTISED) || $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(QUANTISED) \
		bitsandbytes==0.50.2 torchao==0.18.0
	@PYTHONPATH=$(QUANTISED) $(BIN)/python -W ignore -c "import bitsandbytes, torchao"  # or the tests would skip
	@PYTHONPATH=$(QUANTISED) $(BIN)/python -m pytest tests/adapters/test_quantised.py tests/adapters/conditional/test_peft_quantised.py

check: $(STAMP)  ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)  ## benchmarks, written to benchmarks/results/
	@$(BIN)/python benchmarks/overhead.py --output benchmarks/results/overhead.json

docs: $(STAMP)  ## build the documentation site into site/
	@$(BIN)/python -m pip install -q -e ".[docs]"
	@$(BIN)/zensical build

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(QUANTISED) .pytest_cache .mypy_cache .ruff_cache .hypothesis
