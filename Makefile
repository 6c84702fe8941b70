# make demo: the K2-24 case, end to end.   make test: the default tests.   make help: the rest.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
SHELL  := bash
.DEFAULT_GOAL := help

# torch first and pinned: a plain `pip install torch` would bring a build with gigabytes of CUDA libraries
# to machines without a GPU. On a machine with one: make demo TORCH=torch
TORCH ?= torch==2.13.0

$(BIN)/elboscope: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# radvel and lenstronomy are oracles in tests. Of their dependencies, some of them GPL, they get what their import needs;
# the last line fails where that is not enough, so that its tests are not skipped in silence
$(VENV)/.dev: $(BIN)/elboscope
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,cluster,compression]' nbsphinx dill multiprocess
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps radvel==1.6.7 lenstronomy==1.14.2
	$(BIN)/python -W ignore -c "import radvel, lenstronomy.LensModel.lens_model"
	touch $@

.PHONY: install dev demo test test-all test-faults test-slurm lint benchmark format clean help
install: $(BIN)/elboscope ## create .venv and install
dev: $(VENV)/.dev ## and what tests and linters need

demo: install ## K2-24, all stages; prints where the report is
	$(BIN)/elboscope run configs/k2_24.yaml

test: dev ## default tests, under 10 minutes on 2 cores
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-all: dev ## with the slow ones
	$(BIN)/python -m pytest -m 'not slurm'

# some 40 minutes on one core for 200 kills and 100 flips a kind, and as long as MINUTES says for hostile inputs
INPUTS  ?= 1000000
MINUTES ?= 60
test-faults: dev ## hostile inputs, flipped bits, kills, full disks and the like: make test-faults MINUTES=10
	$(BIN)/python -m pytest tests/faults tests/pipeline/test_run_lock.py -m 'not slurm'
	$(BIN)/python -m tests.faults.flips --places 100
	$(BIN)/python -m benchmarks.kills --kills 200
	$(BIN)/python -m tests.faults.fuzz --inputs $(INPUTS) --minutes $(MINUTES)

test-slurm: dev ## on a Slurm that is here, or that the script $$ELBOSCOPE_SLURM_UP starts
	$(BIN)/python -m pytest -m slurm tests/slurm

lint: dev ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

TASK ?= two_moons
BUDGET ?= 600
benchmark: dev ## accuracy on the public benchmark: make benchmark TASK=slcp BUDGET=600
	$(BIN)/python -m benchmarks.accuracy $(TASK) --budget $(BUDGET)

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
