# These commands do everything on a machine with Python 3.11 or newer and make:
#   make quickstart   install into .venv, train nine small models, write their report
#   make test         install into .venv, run all tests; FAST=1 leaves out what starts a process and what is slow (a minute, while editing)
#   make coverage     report the branch coverage of config, manifest, queue, claims, ... by tests that start no process
#   make docs         build the documentation into docs/_build/html; broken links, missing anchors and stale references are errors
#   make package      build wheel and source archive into dist, install each into an empty environment, and run the quickstart from there
#   make soak         rehearse benchmarks.gpu, then run all tests N=10 times, quiet and under load, in random orders, and show what failed
#                     (RENAME=0.05: with a planted race, every renaming waits so many seconds)
#   make cold         run all tests with new interpreters in place of warm forks, two threads each; then some in a Latin-1 locale
#   make newest       run the tests that start no process, without some slow ones, with Python 3.13 and the newest releases, in .venv-3.13 (PYTHON_3_13=...)
#   make versions     the same after the quickstart; then both with the lowest versions that pyproject.toml allows
#   make lock         write down the exact versions in .venv; LOCKED=1 with any other target installs them
#   make simulate     play launches in virtual time on all cores for MINUTES=10 (docs/project/simulation.md)
#   make chaos        break things on purpose for ten minutes, and for ten in a pool on a test cluster; CHAOS="--seed N" the first once more (docs/project/chaos.md)
PYTHON ?= python3
PYTHON_3_13 ?= python3.13
VENV ?= .venv
BIN := $(VENV)/bin
N ?= 10
MINUTES ?= 10
# More than there are cores here: many tests wait for processes of their own.
TEST_PROCESSES ?= 4
PYTEST := $(BIN)/python -m pytest -n $(if $(FAST),auto,$(TEST_PROCESSES)) --dist loadgroup

FAST_TESTS := -m "not process and not slow"
IN_PROCESS_TESTS := -m "not process"
# Whether other versions do: slow tests that hardly call a library look for other things.
LIBRARY_TESTS := -m "not process and (libraries or not slow)"
CONSTRAINTS := tests/constraints.txt
# pip cannot choose the lowest versions; uv can, and installs a CUDA build of torch with a third of pip's processor time.
INSTALLER := $(BIN)/$(if $(VERSIONS),uv,pip)
INSTALL := $(if $(VERSIONS),$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution $(VERSIONS),\
  $(BIN)/pip install --disable-pip-version-check --quiet $(if $(LOCKED),--constraint $(CONSTRAINTS)))
NEWEST := VERSIONS=highest VENV=.venv-3.13 PYTHON=$(PYTHON_3_13) RUN="--runs-dir .venv-3.13/runs" FAST=1 FAST_TESTS='$(LIBRARY_TESTS)'
LOWEST := VERSIONS=lowest-direct VENV=.venv-lowest RUN="--runs-dir .venv-lowest/runs" FAST=1 FAST_TESTS='$(LIBRARY_TESTS)'

.PHONY: quickstart test coverage docs package soak cold newest newest-installed versions lock chaos simulate lint types check install clean

quickstart: $(VENV)/installed
	$(BIN)/python launch.py run jobs/manifests/quickstart.toml --report $(RUN)

test: $(VENV)/installed-test
	$(PYTEST) $(if $(FAST),$(FAST_TESTS))

coverage: $(VENV)/installed-test
	$(BIN)/coverage run -m pytest $(IN_PROCESS_TESTS)
	$(BIN)/coverage report

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx --quiet --fresh-env --write-all --fail-on-warning --keep-going -b html docs docs/_build/html

package: $(VENV)/installed-docs
	rm -rf dist
	$(BIN)/python -m build
	for archive in dist/*; do rm -rf build/try && $(PYTHON) -m venv build/try/venv && build/try/venv/bin/pip install --quiet $$archive \
	  && (cd build/try && venv/bin/seqlm run quickstart --set train.epochs=1 --report) || exit 1; done

soak: $(VENV)/installed-test
	rm -rf build/rehearsal && $(BIN)/python -m benchmarks.gpu --rehearse --out build/rehearsal
	$(BIN)/python -m tests.tools.soak $(N) $(if $(RENAME),--rename-seconds $(RENAME)) -- -n $(TEST_PROCESSES) --dist loadgroup

LATIN_1 := build/locale/en_US.ISO-8859-1
LATIN_1_TESTS := tests/seqlm/data tests/jobs tests/analysis tests/trust tests/end_to_end/test_command_line.py tests/end_to_end/test_launch.py tests/end_to_end/test_report_command.py
cold: export SEQLM_TEST_COLD = 1
cold: $(VENV)/installed-test
	mkdir -p $(dir $(LATIN_1)) && localedef -i en_US -f ISO-8859-1 $(LATIN_1) # definitions: Debian's package "locales"
	$(PYTEST)
	LOCPATH=$(abspath $(dir $(LATIN_1))) LC_ALL=en_US.ISO-8859-1 $(PYTEST) $(LATIN_1_TESTS)

newest:
	$(MAKE) $(NEWEST) test

newest-installed:
	$(MAKE) $(NEWEST) .venv-3.13/installed-test

versions:
	$(MAKE) $(NEWEST) quickstart test
	$(MAKE) $(LOWEST) quickstart test

lock: $(VENV)/installed-test
	{ echo "# The versions of the last green check: make LOCKED=1 ..."; \
	  $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//'; } >$(CONSTRAINTS)

chaos: $(VENV)/installed-test
	$(BIN)/python -m tests.chaos --minutes 10 $(CHAOS)
	$(if $(CHAOS),,$(BIN)/python -m tests.chaos --minutes 10 --backend slurm --pool)

simulate: $(VENV)/installed-test
	$(BIN)/python -m tests.simulation --minutes $(MINUTES)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed-test
	$(BIN)/mypy

check: test lint types docs

install: $(VENV)/installed

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is too old, seqlm needs Python 3.11 or newer; use: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check --quiet uv

$(VENV)/installed: pyproject.toml | $(INSTALLER)
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(INSTALLER)
	$(INSTALL) --editable '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(INSTALLER)
	$(INSTALL) --editable '.[docs]'
	touch $@

clean:
	rm -rf docs/_build .venv .venv-3.13 .venv-lowest build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
