# Everything runs in .venv, which is created on first use. If python3 is older than 3.11:
# make PYTHON=python3.12 ...
PYTHON = python3
BIN = .venv/bin
# More processes than processors, because the tests wait most of the time: with six, two
# processors were idle for a quarter of the time.
PARALLEL = -n 8
# The tests start a thousand Pythons. Let them keep the bytecode of what they import.
unexport PYTHONDONTWRITEBYTECODE
SOURCES = pyproject.toml setup.py \
    $(shell find src -type f -not -name '*.pyc' -not -path '*.egg-info/*')

.PHONY: demo uwsgi test test-all walk test-matrix test-newest wheels faults docs lint format build clean \
    sharing-table bench instructions check-instructions record-instructions

demo: .venv/demo
	PYTHONPATH=tools $(BIN)/python demo

# Build uWSGI with all its engines, for the demo and the tests.
uwsgi: .venv/demo
	$(BIN)/python tools/uwsgi_builds.py

# The tests import the installed package, not the one in this folder.
test: .venv/test
	$(BIN)/pytest $(PARALLEL)

# Also the tests that are marked `full`: other gunicorns, chaos, psycopg2's own tests.
test-all: .venv/test
	$(BIN)/pytest $(PARALLEL) --full

# Run every command of the README and the documentation, in empty environments.
walk: .venv/test
	$(BIN)/pytest $(PARALLEL) --full tests/test_walk.py

# Run the tests with the oldest and the newest libraries, on each Python that is found.
test-matrix: .venv/matrix
	$(BIN)/nox

# Run the tests on Python 3.14 and 3.15, in a Debian sid folder, .cache/sid. This needs
# root and debootstrap. NEWEST="3.15 tests/test_uwsgi.py" runs a part.
test-newest: .venv
	$(BIN)/python tools/newest.py $(NEWEST) $(PARALLEL)

# Build and test the distributions of a release: dist/
wheels: .venv/wheels
	$(BIN)/python tools/wheels.py

# Inject every fault, with this psycogreen and with 1.0.2: docs/faults-table.rst
faults: .venv/test
	PYTHONPATH=tests:tools $(BIN)/python -P tests/faults/table.py

# Run each operation on a connection that is in use: docs/sharing-table.rst
sharing-table: .venv/test
	PYTHONPATH=tests:tools $(BIN)/python -P tests/sharing/table.py

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-cache --no-logo

docs: .venv/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	@echo build/docs/index.html

# Compare psycogreen with the alternatives, in about 25 minutes: docs/benchmarks.rst
bench: .venv/bench
	PYTHONPATH=tools $(BIN)/python benchmarks

# Count the instructions of a query and of a connection with valgrind. After a change that
# is meant to make them cheaper or more expensive, record the figures for the check.
instructions: .venv/bench
	$(BIN)/python benchmarks/instructions.py

check-instructions: .venv/test
	$(BIN)/python benchmarks/instructions.py --check

record-instructions: .venv/test
	$(BIN)/python benchmarks/instructions.py --record

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: .venv/test
	$(BIN)/python -m build

.venv:
	$(PYTHON) -m venv .venv

# The stamp file of a dependency group. pip supports groups since 25.1. The package itself
# is uninstalled first: for pip, an installed package of the same version is up to date.
# Python compiles what it imports, which is a small part of what pip would compile.
.venv/bench .venv/demo .venv/docs .venv/matrix .venv/test .venv/wheels: $(SOURCES) | .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip uninstall --quiet --yes psycogreen 2>/dev/null
	$(BIN)/pip install --quiet --no-compile . --group $(@F)
	touch $@

clean:
	rm -rf .venv .cache build dist src/*.egg-info
