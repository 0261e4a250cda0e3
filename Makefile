# The front door. Each target installs what it needs into .venv by itself.
#   make demo      the main job, from start to restart, on data of its own
#   make test      the tests that a change must pass (make test-all: the slow ones too)
#   make start | run | run-verbose | stop | status | logs | init | clean    the example's steps
#   make check     lint, formatting, types, import rules
#   make bench     the benchmarks, as ratios against their peers

PYTHON ?= python3
BIN := .venv/bin
EXAMPLE := examples/encrypted-storage

.DEFAULT_GOAL := help
.PHONY: help install test test-all check format bench demo init start run run-verbose stop status logs clean

help:
	@sed -n 's/^#   //p' Makefile

install: .venv/.installed
	@:

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into .venv ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fast]' --group dev
	@touch $@

test: install
	$(BIN)/pytest -m "not slow"

test-all: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each step of the example.
demo init start run run-verbose stop status logs clean:
	@$(MAKE) --no-print-directory -C $(EXAMPLE) $@ PORT="$(PORT)"

# The peers are installed only here.
bench: install
	@$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/storage.py
	$(BIN)/python benchmarks/fabric.py
