# Everything runs in .venv, which is made on first use. On a machine where
# python3 is older than 3.11: make PYTHON=python3.12 ...
PYTHON = python3
BIN = .venv/bin
# More processes than processors: most of the time the tests wait.
PARALLEL = -n 6
SOURCES = pyproject.toml setup.py \
    $(shell find src -type f -not -name '*.pyc' -not -path '*.egg-info/*')

.PHONY: demo uwsgi test test-all walk test-matrix test-newest wheels faults docs lint format build clean \
    sharing-table bench instructions check-instructions record-instructions

demo: .venv/demo
	PYTHONPATH=tools $(BIN)/python demo

# A uWSGI with all its engines, which the demo then shows and the tests run.
uwsgi: .venv/demo
	$(BIN)/python tools/uwsgi_builds.py

# The tests import the package as it is installed, never this folder's.
test: .venv/test
	$(BIN)/pytest $(PARALLEL)

# Those that are marked `full` as well: other gunicorns, chaos, psycopg2's own tests.
test-all: .venv/test
	$(BIN)/pytest $(PARALLEL) --full

# Every command of the README and the documentation, in empty environments.
walk: .venv/test
	$(BIN)/pytest $(PARALLEL) --full tests/test_walk.py

# With the oldest and the newest libraries, on each Python that is found.
test-matrix: .venv/matrix
	$(BIN)/nox

# On Python 3.14 and 3.15, in a Debian sid folder: .cache/sid. Needs root, debootstrap.
test-newest: .venv
	$(BIN)/python tools/newest.py $(PARALLEL)

# What a release consists of, tried: dist/
wheels: .venv/wheels
	$(BIN)/python tools/wheels.py

# Every fault, with psycogreen here and with 1.0.2: docs/faults-table.rst
faults: .venv/test
	PYTHONPATH=tests:tools $(BIN)/python -P tests/faults/table.py

# What becomes of operations on a busy connection: docs/sharing-table.rst
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

# psycogreen beside what else there is, in ten to fifteen minutes: docs/benchmarks.rst
bench: .venv/bench
	PYTHONPATH=tools $(BIN)/python benchmarks
	PYTHONPATH=tools $(BIN)/python benchmarks/connecting.py

# What a query and a connection cost, counted by valgrind. After a change that is meant
# to make one dearer or cheaper, record the figures that the check compares with.
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

# The stamp of a dependency group, which pip knows from 25.1 on. The package itself is
# always built again: pip considers an installed one of the same version up to date.
.venv/bench .venv/demo .venv/docs .venv/matrix .venv/test .venv/wheels: $(SOURCES) | .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet . --group $(@F)
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	touch $@

clean:
	rm -rf .venv .cache build dist src/*.egg-info
