# These commands do everything on a machine with Python 3.11 or newer and make:
#   make quickstart   install into .venv, train nine small models, write their report
#   make test         install into .venv, run all tests
#   make coverage     report the branch coverage of config, manifest, queue, discussion, ... by tests that start no process
#   make chaos        break things on purpose for ten minutes; CHAOS="--seed N" the same once more (docs/reliability.md)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test coverage chaos lint types check install clean

quickstart: .venv/installed
	$(BIN)/python launch.py run jobs/manifests/quickstart.toml --report

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

coverage: .venv/installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup -m "not process" --cov --cov-report=term-missing

chaos: .venv/installed-test
	$(BIN)/python -m tests.chaos --minutes 10 $(CHAOS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

check: test lint types

install: .venv/installed

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is too old, seqlm needs Python 3.11 or newer; use: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --disable-pip-version-check --quiet --editable .
	touch $@

.venv/installed-test: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[test]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
