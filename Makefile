# Everything happens in .venv, which the first call makes. `make` alone lists what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two worker processes with one thread each: small matrices do not profit from threads, tests do from processes.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
PIP := $(BIN)/python -m pip --disable-pip-version-check install

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs tutorials clean distclean

help:
	@echo "make demo       train on blood cells (RNA) and on simulated ones (RNA and ATAC), and draw figures, in demo/"
	@echo "make test       ruff, mypy, and the tests but for the slow ones (WORKERS=$(WORKERS) processes)"
	@echo "make test-all   the same with the slow tests"
	@echo "make lint       ruff, mypy and the import contracts only"
	@echo "make format     let ruff fix and format the code"
	@echo "make docs       the documentation, in docs/_build/html"
	@echo "make tutorials  run the tutorials, and keep what they show in them"
	@echo "make clean      remove what was built: demo/, docs/_build/, dist/, caches"
	@echo "make distclean  remove .venv, too"
	@echo
	@echo "The first call makes .venv from $(PYTHON) (Python 3.11 or newer; for another one: make test PYTHON=python3.12)."

# Threads that wait without spinning: on a busy machine, spinning ones make small steps ten times slower.
demo: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m celldial demo

test: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

test-all: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m ""

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

tutorials: $(VENV)/.installed-dev
	$(ONE_THREAD) $(BIN)/python tutorials/execute.py

# The stamps are touched last, so that an installation that broke off is done again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "celldial needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo no Python)." >&2; \
	  echo "Name another one, for example: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) -c constraints.txt -e ".[dev,docs]"
	@touch $(VENV)/.installed $@

clean:
	rm -rf demo dist build docs/_build docs/api/generated docs/tutorials .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
