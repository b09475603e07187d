# `make demo` runs the main job, `make test` the tests; both set up first, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.rankwise-installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check bench docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install everything, once

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): about 100 packages, 1 to 5 minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -o pipefail; PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[demo,dev]" \
		| awk '/^(Collecting|Installing|Successfully)/ { printf "\r\033[K  %d packages  %.50s", n += /^Collecting/, $$0; fflush() } END { print "" }'
	@touch $@

demo: $(STAMP)  ## the main job: compare LoRA, AdaLoRA and GLoRA on real text
	@$(BIN)/rankwise compare

test: $(STAMP)  ## the tests (a few minutes)
	@$(BIN)/python -m pytest

test-all: $(STAMP)  ## the tests, slow ones too
	@$(BIN)/python -m pytest -m "slow or not slow"

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
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
