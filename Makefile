# All tools run in .venv, which the first call creates. `make` without a target lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The lowest supported Python, for `make test-lowest`.
LOWEST_PYTHON ?= python3.11
LOWEST := .venv-lowest
# Two worker processes with one thread each: tests gain from processes, small matrices do not gain from threads.
WORKERS ?= 2
# Tests of one file run in one process: they share fitted models.
PYTEST := -m pytest -n $(WORKERS) --dist loadscope
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
PIP_INSTALL := -m pip --disable-pip-version-check install
PIP := $(BIN)/python $(PIP_INSTALL)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest coverage lint lint-types lint-docstrings lint-rest format docs tutorials news clean distclean

help:
	@echo "make demo         train on blood cells (RNA) and on simulated cells (RNA and ATAC); figures in demo/"
	@echo "make test         lint, and the tests except the slow ones (WORKERS=$(WORKERS) processes)"
	@echo "make test-all     the same with the slow tests"
	@echo "make test-lowest  the tests with the lowest supported versions of all dependencies, in $(LOWEST)"
	@echo "make coverage     the tests, and the branch coverage of each file"
	@echo "make lint         ruff, mypy, import contracts, codespell and numpydoc"
	@echo "make format       fix and format the code with ruff"
	@echo "make docs         build the documentation in docs/_build/html"
	@echo "make tutorials    run the tutorials and store their outputs"
	@echo "make news         preview the changelog entries of changes/"
	@echo "make clean        delete build outputs: demo/, docs/_build/, dist/, caches"
	@echo "make distclean    also delete $(VENV) and $(LOWEST)"
	@echo
	@echo "The first call creates $(VENV) from $(PYTHON) (Python 3.11 or newer; another one: make test PYTHON=python3.12)."

# Threads wait without spinning: on a busy machine, spinning threads make small steps ten times slower.
demo: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m celldial demo

test: lint
	$(ONE_THREAD) $(BIN)/python $(PYTEST)

test-all: lint
	$(ONE_THREAD) $(BIN)/python $(PYTEST) -m ""

# Old versions use what newer ones deprecate, so deprecations are not errors here. With pandas 2.1, anndata converts the
# index of a table without rows, and warns.
test-lowest: $(LOWEST)/.installed
	$(ONE_THREAD) $(LOWEST)/bin/python $(PYTEST) --ignore=tests/project \
	  -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning -W ignore::FutureWarning \
	  -W "ignore:Transforming to str index"

coverage: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python $(PYTEST) --cov --cov-report=term

# The two checks that take longer than a second run at the same time as the others.
lint: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory -j 2 lint-types lint-docstrings lint-rest

lint-types: $(VENV)/.installed-dev
	$(BIN)/mypy

lint-docstrings: $(VENV)/.installed-dev
	$(BIN)/numpydoc lint $$(find src -name '*.py')

lint-rest: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

tutorials: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python tutorials/execute.py

news: $(VENV)/.installed-dev
	$(BIN)/towncrier build --draft --version unreleased

# The stamps are touched last, so that an interrupted installation is repeated.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "celldial needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not Python)." >&2; \
	  echo "Name another one, for example: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) -c constraints.txt -e ".[dev,docs]"
	@touch $(VENV)/.installed $@

# Only the tools that the tests need: some tools of the extra "dev" need newer versions.
$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(LOWEST_PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python $(PIP_INSTALL) -c constraints-lowest.txt -e ".[mudata]" hypothesis pytest pytest-xdist
	@touch $@

clean:
	rm -rf demo dist build docs/_build docs/api/generated docs/tutorials .coverage .coverage.* htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LOWEST)
