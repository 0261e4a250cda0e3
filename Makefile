# The front door. Each target installs what it needs into .venv.
#   make demo      the example from start to restart, in a directory that is removed at the end
#   make demo-postgres   two replicas that share state in a PostgreSQL server, one of them killed
#   make test      the tests that a change must pass (make test-all: the slow ones too, and make soak)
#   make start | run | run-verbose | stop | status | logs | init | clean    the example's steps
#   make check     lint, formatting, spelling, types, import rules
#   make bench     the benchmarks, as ratios against their peers

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
GROUP ?= dev
BIN := $(VENV)/bin
SOAK_SECONDS ?= 600
EXAMPLE := examples/encrypted-storage

# A test or two of everything that a dependency or a Python version could break.
QUICK := tests/cli/test_cli.py tests/disk/test_file_format.py tests/keys/test_audit.py \
	tests/nodes/test_admin.py tests/storage/test_conformance.py tests/storage/test_typed.py \
	tests/test_settings.py $(addprefix tests/fabric/test_,address.py agents.py captures.py \
	envelope.py limits.py processes.py routes.py spine.py strangers.py)

.DEFAULT_GOAL := help
.PHONY: help install install-runtime test test-all soak test-quick test-integrations check format bench demo demo-postgres init start run run-verbose stop status logs clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(VENV)/.installed
	@:

# What the example needs: no tools of ours.
install-runtime: $(VENV)/.runtime
	@:

$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[fast]'
	@touch $@

# pip before 25.1 knows no --group.
$(VENV)/.installed: $(VENV)/.runtime
	@$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --group $(GROUP)
	@touch $@

test: install
	$(BIN)/pytest -n auto -m "not slow" $(PYTEST_OPTIONS)

test-all: install
	$(BIN)/pytest -n auto
	@$(MAKE) --no-print-directory soak

# Everything that can happen to calls at once; prints its seed, and how the calls ended.
soak: install
	PYTHONPATH=tests $(BIN)/python tests/fabric/test_soak.py $(SOAK_SECONDS)

# Under a minute: .ci/run repeats these on each Python, and with the oldest dependencies.
test-quick: install
	$(BIN)/pytest -m "not slow" -W ignore::DeprecationWarning $(QUICK)

# With the real frameworks, in an environment of their own.
test-integrations:
	@$(MAKE) --no-print-directory install VENV=.venv-integrations GROUP=integrations \
		CONSTRAINTS=constraints-integrations.txt
	.venv-integrations/bin/pytest tests/integrations

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each step of the example.
demo init start run run-verbose stop status logs clean:
	@$(MAKE) --no-print-directory -C $(EXAMPLE) $@ PORT="$(PORT)"

demo-postgres: install
	@$(BIN)/python scripts/demo_postgres.py

# The peers are installed only here.
bench: install
	@$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/storage.py
	$(BIN)/python benchmarks/fabric.py
