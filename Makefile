# The verbs of this repository; `make help` lists them.

# The Python that .venv is made with: 3.10, 3.11 or 3.12.
PYTHON ?= python3
# Tests run in this many processes, each with one thread: models of tests are small.
JOBS ?= 2
# How often `make kills` kills.
KILLS ?= 30
# How many faults `make mutate` draws, and which.
MUTANTS ?= 200
SEED ?= 0

RUN := .venv/bin
CXX_SOURCES = $(shell find ops_dcnv3 tests -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

.DEFAULT_GOAL := help
.PHONY: help setup build check format test test-gpu test-install kills mutate bench demo clean

help: ## List the verbs
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

setup: ## Make .venv: the first time 10 to 25 minutes and 13 GB of disk, later at once
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo '$(PYTHON) was not found: install Python 3.12, or name yours, as in' \
	    '`make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11`.' >&2; exit 1; }
	@'$(PYTHON)' tools/bootstrap.py

build: ## Compile the operator again
	@rm -f .venv/stamps/internimage
	@$(MAKE) --no-print-directory setup

check: setup ## Lint, format, spelling, types
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(RUN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	@$(RUN)/codespell
	@$(RUN)/mypy

format: setup ## Mend what a program can mend
	@$(RUN)/ruff check --fix-only .
	@$(RUN)/ruff format .
	@$(RUN)/clang-format -i $(CXX_SOURCES)

test: setup ## Run all tests, JOBS=2 at a time; ARGS='-k dcnv3' chooses some
	@OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(JOBS) --dist loadscope $(ARGS)

test-gpu: setup ## Run the tests that need a CUDA device; without one they fail
	@REQUIRE_CUDA=1 $(RUN)/python -m pytest -m gpu $(ARGS)

test-install: setup ## Install the wheel with all extras into a fresh environment, run the documents' Python and mim there
	@$(RUN)/python -m tests.install.fresh

kills: setup ## Kill small trainings KILLS=30 times; each has to end as if unbroken, bit for bit
	@OMP_NUM_THREADS=1 $(RUN)/python -m tests.kills --kills $(KILLS)

bench: setup ## Compare the CPU with its targets, in 10 minutes; PUBLISHED=<their ops_dcnv3> adds the published code
	@$(RUN)/python tools/benchmarks/targets.py --run \
	  $(if $(PUBLISHED),--published '$(PUBLISHED)')

demo: setup ## Train, test and infer on generated data; TASK=, MODEL=, DATA=<folder>, CLASSES='<names>' and ITERS=<n> change it
	@$(RUN)/python projects/quickstart/demo.py $(if $(TASK),--task '$(TASK)') \
	  $(if $(MODEL),--model '$(MODEL)') \
	  $(if $(DATA),--data '$(DATA)') $(if $(CLASSES),--classes $(CLASSES)) \
	  $(if $(ITERS),--iters '$(ITERS)') $(DEMO_ARGS)

mutate: setup ## Put MUTANTS=200 small faults into copies of the code, which the tests have to catch; SEED=, PATHS=
	@$(RUN)/python -m tests.mutation --mutants $(MUTANTS) --seed $(SEED) --jobs $(JOBS) $(PATHS)

clean: ## Delete what was built or cached, but not .venv and results
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@rm -f ops_dcnv3/*.so .venv/stamps/internimage
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
