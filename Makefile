# The commands of this repository. Everything that is built or installed lies in .venv and build/,
# except for the Debian packages that `make setup` asks apt for.

PYTHON ?= python3
PHOTOS ?=
JOBS ?= $(shell nproc)
VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps

# Answers to nobody: these run without a terminal too.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

.PHONY: help setup extension demo test test-cpp test-python test-interop test-long lint format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make setup         system packages, .venv, the extension (does nothing where all is there)"
	@echo "make demo          train on real photographs, then compare with other ways; PHOTOS=folder"
	@echo "make test          C++ and Python tests"
	@echo "make test-interop  tests against torch, jax, grain, spdl, ... (installs them into .venv)"
	@echo "make test-long     C++ under sanitizers, fuzzing, Python tests that take minutes, CPython's own of pools"
	@echo "make lint          formatters, linters, types"
	@echo "make bench         the figures of docs/performance.md, measured here"
	@echo "make clean         remove build/ and .venv"

setup: $(STAMPS)/stook extension

$(STAMPS)/system: scripts/system-packages.txt scripts/install-system-packages.sh
	@scripts/install-system-packages.sh
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/venv: $(STAMPS)/system
	@scripts/make-venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

# --no-build-isolation: the headers keep their paths, so that a rebuild compiles only what changed.
$(STAMPS)/stook: $(STAMPS)/venv pyproject.toml setup.py
	@$(PY) -m pip install --quiet 'setuptools>=77' wheel 'numpy>=2' 'pybind11>=2.13' </dev/null
	@$(PY) -m pip install --quiet --no-build-isolation -e '.[test]' </dev/null
	@touch $@

# Rebuilds what a change of C++ touched; a second when nothing was.
extension: $(STAMPS)/stook
	@$(PY) setup.py --quiet build_ext --inplace </dev/null

$(STAMPS)/demo: $(STAMPS)/stook
	@$(PY) -m pip install --quiet --no-build-isolation -e '.[demo]' </dev/null
	@touch $@

# Where torch has no wheel without CUDA for this machine, this downloads gigabytes.
$(STAMPS)/interop: $(STAMPS)/stook
	@$(PY) -m pip install --quiet --no-build-isolation -e '.[interop]' </dev/null
	@touch $@

demo: setup $(STAMPS)/demo
	@$(PY) examples/train_photos.py $(if $(PHOTOS),--photos "$(PHOTOS)")

test: setup
	@$(PY) scripts/test.py cpp:dev python

test-cpp: setup
	@$(PY) scripts/test.py cpp:dev

test-python: setup
	@$(PY) scripts/test.py python

test-interop: setup $(STAMPS)/interop
	@$(PY) scripts/test.py interop

test-long: setup
	@$(PY) scripts/test.py cpp:asan cpp:tsan fuzz long conformance

# The linters are tests (tests/python/package); this runs those alone.
lint: setup
	@$(PY) -m pytest -q tests/python/package

format: setup
	@git ls-files -z --cached --others --exclude-standard '*.h' '*.cpp' | xargs -0r $(VENV)/bin/clang-format -i
	@$(PY) -m ruff check --quiet --fix . || true
	@$(PY) -m ruff format --quiet .

bench: setup $(STAMPS)/demo $(STAMPS)/interop
	@cmake --preset release >/dev/null && cmake --build --preset release --target benchmarks
	@$(PY) benchmarks/python/compare.py

clean:
	rm -rf build .venv
	find python -name '*.so' -delete
