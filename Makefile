# Every target sets itself up: the first run makes .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VIDEO ?=
DEMO_FLAGS ?=
BIN := .venv/bin
# Threads that wait by spinning take the cores from threads that work: on a machine with other load, small operations ran
# 20 times slower.
export OMP_WAIT_POLICY ?= PASSIVE
# Tests run one thread a process, and a file's tests in one process, since some share a trained model.
PARALLEL ?= -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-full mutations lint docs bench clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'FreqFormer needs Python 3.11 or newer: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

demo: .venv/ready ## real video in, generated video and report out: demo/index.html; from the shipped model, or from scratch where there is none
	$(BIN)/freqformer demo --output demo $(if $(VIDEO),--video "$(VIDEO)",) $(DEMO_FLAGS)

test: .venv/ready ## the whole suite but long sweeps, on the CPU
	TRITON_INTERPRET=1 $(BIN)/pytest $(PARALLEL)

test-full: .venv/ready ## long sweeps too
	TRITON_INTERPRET=1 $(BIN)/pytest $(PARALLEL) -m 'not gpu'

mutations: .venv/ready ## seeded faults in the kernels, and which tests notice them: tests/mutation/results.json
	$(BIN)/python -m tests.mutation

lint: .venv/ready ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/ready ## docs in site/
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo site
