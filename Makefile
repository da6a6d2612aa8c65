# Everything but `make gpu` runs in .venv, which every target brings up to date first. Needs no more
# than Python 3.10 or later, make and a C++17 compiler. PYTHON=... chooses the Python, MAX_JOBS=...
# how many compilers run at once, RESULTS=... where `make bench` and `make gpu` write.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
# Named in every installation: left to choose a torch, pip may take one that brings gigabytes of CUDA.
TORCH := torch==2.13.0
TRITON := triton==3.9.0
find_cpp = $(shell find $(1) -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CSRC := $(call find_cpp,csrc)
LINTED := $(CSRC) $(call find_cpp,tests)

.PHONY: venv bench examples test lint format clean
.PHONY: gpu gpu-build gpu-test gpu-tools gpu-triton gpu-configurations gpu-sanitize gpu-bench memcheck racecheck initcheck

venv: .venv/installed

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml setup.py $(CSRC) | $(BIN)/python
	$(BIN)/python -m pip install $(TORCH) "setuptools>=77" ninja "pybind11>=2.12"
	$(BIN)/python -m pip install $(TORCH) $(TRITON) --no-build-isolation \
		--editable ".[bench,examples,lint,test]"
	touch $@

bench: venv
	$(BIN)/python -m examples.lenet
	$(BIN)/python -m examples.edges
	$(BIN)/python -m benchmarks --quick

examples: venv
	$(BIN)/python -m examples

test: venv
	$(BIN)/python -m pytest

# With a GPU, offline and with what $(PYTHON) has: builds, and then tests, with either backend,
# sanitizes and measures, each within its time and whether or not the others failed. Logs go where
# the results go.
LOGS = $(or $(RESULTS),build/gpu)
WITHIN = timeout --signal=INT --kill-after=20
# For tests side by side, and against tests that hang, if pytest has those plugins.
PLUGINS = $(shell $(PYTHON) -c 'from importlib.util import find_spec as has; print( \
	"-n logical --maxprocesses 8 --dist worksteal" if has("xdist") else "", \
	"--timeout 90 --timeout-method thread" if has("pytest_timeout") else "")')
# Tests of what PyTorch does with operators and networks, which compile for minutes; those of others'
# models only where they are installed, for nothing is fetched.
TOOLS = $(patsubst %,tests/test_%.py,autocast channels_last checkpointing compile convert export \
	flops functorch fusion module_tools tracing tuning) $(shell $(PYTHON) -c 'from importlib.util import \
	find_spec as has; print("tests/test_models.py" if has("transformers") else "")')
SANITIZER = PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(WITHIN) 120 compute-sanitizer --error-exitcode 1
gpu-%: export PYTHONUNBUFFERED = 1

# What is not timed runs side by side.
gpu: gpu-build
	$(MAKE) --keep-going --jobs=5 --output-sync \
		gpu-test gpu-tools gpu-triton gpu-configurations gpu-sanitize; tested=$$?; \
		$(MAKE) gpu-bench && exit $$tested

gpu-build:
	mkdir -p $(LOGS)
	(nvidia-smi && D2LOPS_CUDA=1 $(PYTHON) setup.py build_ext --inplace && \
		$(PYTHON) -m d2lops.info) 2>&1 | tee $(LOGS)/build.log

gpu-test: gpu-build
	D2LOPS_TEST_DEVICE=cuda OMP_NUM_THREADS=1 $(WITHIN) 180 \
		$(PYTHON) -m pytest $(PLUGINS) --tb=short --durations=10 \
		--ignore=tests/test_triton_configurations.py \
		--ignore=tests/test_models.py $(TOOLS:%=--ignore=%) 2>&1 | tee $(LOGS)/test.log

gpu-tools: gpu-build
	D2LOPS_TEST_DEVICE=cuda OMP_NUM_THREADS=1 $(WITHIN) 180 $(PYTHON) -m pytest $(PLUGINS) \
		--tb=short --durations=10 $(TOOLS) 2>&1 | tee $(LOGS)/tools.log

# First configurations: to find the fastest of several for each size would take longer than to test.
gpu-triton: gpu-build
	D2LOPS_TEST_DEVICE=cuda D2LOPS_BACKEND=triton D2LOPS_TRITON_TUNE=0 OMP_NUM_THREADS=1 \
		$(WITHIN) 180 $(PYTHON) -m pytest $(PLUGINS) --tb=short --durations=10 \
		tests/test_corr2d.py tests/test_dropout.py tests/test_linear_relu.py tests/test_pool2d.py \
		tests/test_fma_chain.py 2>&1 | tee $(LOGS)/triton.log

# What a user's GPU may find to be the fastest.
gpu-configurations: gpu-build
	D2LOPS_TEST_DEVICE=cuda OMP_NUM_THREADS=1 $(WITHIN) 180 $(PYTHON) -m pytest $(PLUGINS) \
		--tb=short tests/test_triton_configurations.py 2>&1 | tee $(LOGS)/configurations.log

gpu-sanitize: gpu-build
	$(MAKE) --keep-going --jobs=3 --output-sync memcheck racecheck initcheck 2>&1 | \
		tee $(LOGS)/sanitize.log

memcheck racecheck:
	$(SANITIZER) --tool $@ --kernel-name kns=d2lops $(PYTHON) -m tests.sanitize

initcheck: # torch's kernels too, or what they write would count as never written
	$(SANITIZER) --tool $@ $(PYTHON) -m tests.sanitize

gpu-bench: gpu-build
	$(WITHIN) 270 $(PYTHON) -m benchmarks --device cuda 2>&1 | tee $(LOGS)/bench.log

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(LINTED)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(LINTED)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis d2lops/*.so d2lops/lib/*.so
	find . -name __pycache__ -type d -prune -exec rm -r {} +
