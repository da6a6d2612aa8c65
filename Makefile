# Everything runs in .venv, which every target brings up to date first. Needs no more than Python 3.10
# or later, make and a C++17 compiler. PYTHON=... chooses the Python, MAX_JOBS=... how many compilers
# run at once, RESULTS=... where `make bench` writes.
PYTHON ?= python3
BIN := .venv/bin
# Named in every installation: left to choose a torch, pip may take one that brings gigabytes of CUDA.
TORCH := torch==2.13.0
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: venv bench test lint format clean

venv: .venv/installed

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml setup.py $(CSRC) | $(BIN)/python
	$(BIN)/python -m pip install $(TORCH) "setuptools>=77" ninja "pybind11>=2.12"
	$(BIN)/python -m pip install $(TORCH) --no-build-isolation --editable ".[bench,lint,test]"
	touch $@

bench: venv
	$(BIN)/python examples/lenet.py
	$(BIN)/python examples/edges.py
	$(BIN)/python -m benchmarks --quick

test: venv
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis d2lops/*.so d2lops/lib/*.so
	find . -name __pycache__ -type d -prune -exec rm -r {} +
