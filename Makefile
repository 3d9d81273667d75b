# make demo    train LeNet-5 on real digits and open what it learned
# make test    lint and all tests
# make lint    ruff, mypy, import-linter
# make bench   start-up, networks and pipeline beside their peers
# make docs    the pages, from docs/, the READMEs and the code: build/docs/index.html
# make wheels  build every member and example, and prove that each works alone
# All of it happens in .venv, inside this folder.

PYTHON ?= python3
BIN := .venv/bin
MEMBERS := $(wildcard packages/*/pyproject.toml)
PROJECTS := $(dir $(MEMBERS) $(wildcard examples/*/pyproject.toml))
TESTS ?= tests

export MPLCONFIGDIR := $(CURDIR)/.venv/cache/matplotlib
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint format bench docs wheels clean

demo: .venv/.ready
	$(BIN)/cnnzoo demo

test: lint
	$(BIN)/pytest -n 2 --dist loadgroup $(TESTS)

test-slow: .venv/.ready-dev
	$(BIN)/pytest -m slow --timeout 3600 $(TESTS)

lint: .venv/.ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/lint-imports layers.toml

format: .venv/.ready-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "cnnzoo needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	mkdir -p $(MPLCONFIGDIR)

.venv/.ready: requirements.txt $(MEMBERS) | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/.ready-dev: requirements-dev.txt .venv/.ready
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

bench: .venv/.ready-dev
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/architectures.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/trainer.py

docs: .venv/.ready-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --fresh-env docs build/docs

wheels: .venv/.ready-dev
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist $(PROJECTS)
	for project in $(PROJECTS); do (cd $$project && $(abspath $(BIN))/python -c \
	    'from flit_core import buildapi; buildapi.build_sdist("$(CURDIR)/dist")') || exit 1; done
	DIST=$(CURDIR)/dist $(BIN)/pytest -q -m 'slow or not slow' tests/repo/test_wheels.py
