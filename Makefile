# `make demo` and `make test` need Python 3.11 or newer and nothing else: they make a virtual environment, install the
# package into it, and run. A C++ compiler is used where there is one.
#   make test VENV=/path/to/environment   uses another environment, made if it isn't there
#   make test PYTHON=python3.12           makes the environment with that Python
#   make test ARGS="-k paths -x"          passes arguments on to pytest
#   make test WORKERS=8                   tests in so many processes

VENV ?= .venv
PYTHON ?=
ARGS ?=
WORKERS ?= 2
# Waiting threads sleep: where others use the same cores, OpenMP's habit of spinning slows small models down many times.
export OMP_WAIT_POLICY ?= passive
PY = "$(VENV)/bin/python"
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

# An environment is up to date when it was installed from these files, in this folder, with this compiler.
KEY := $(shell { pwd; command -v c++; cat pyproject.toml CMakeLists.txt src/visionssm/csrc/* 2>/dev/null; } | cksum | cut -d' ' -f1)

.PHONY: help demo test test-all lint format clean environment demo-environment

help:
	@echo "make demo      train, evaluate and use a small model on handwritten digits, in about two minutes"
	@echo "make test      lint, types, and the quick tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      lint and types only"
	@echo "make format    format the code, and mend what the linter can"
	@echo "make clean     remove the environment and all build output"

demo: demo-environment
	@$(PY) -m visionssm demo

test: lint
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: lint
	@$(PYTEST) $(ARGS)

lint: environment
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

format: environment
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

demo-environment:
	@EXTRAS=train STAMPS="demo test" sh tools/environment.sh "$(VENV)" "$(KEY)" "$(PYTHON)"

environment:
	@EXTRAS=all,dev STAMPS=test sh tools/environment.sh "$(VENV)" "$(KEY)" "$(PYTHON)"

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
