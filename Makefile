# Every target sets itself up: the first run makes .venv, with the versions of requirements/torch-$(TORCH).txt.
PYTHON ?= python3
# Which release of torch, of those in requirements/; another one changes .venv.
TORCH ?= 2.13
# One more place where pip looks for torch: PyTorch's "Get started" page names one with builds for a CPU.
TORCH_INDEX ?=
# Releases of torch for `make test-versions`, all where none is named.
VERSIONS ?=
# How long `make fuzz` takes beside its preparation, and another number for other inputs.
MINUTES ?= 5
SEED ?= 0
VIDEO ?=
DEMO_FLAGS ?=
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
# Threads that wait by spinning take the cores from threads that work: on a machine with other load, small operations ran
# 20 times slower.
export OMP_WAIT_POLICY ?= PASSIVE
# Tests run one thread a process, and a file's tests in one process, since some share a trained model.
PARALLEL ?= -n auto --maxprocesses 8 --dist loadfile

READY := .venv/ready-$(TORCH)

.PHONY: demo test test-full test-versions mutations fuzz lint docs locks check-locks clean

$(READY): pyproject.toml tools/set_up.py $(wildcard requirements/torch-$(TORCH).txt)
	rm -f .venv/ready*
	$(PYTHON) tools/set_up.py .venv --torch $(TORCH) --torch-index "$(TORCH_INDEX)"
	touch $@

demo: $(READY) ## real video in, generated video and report out: demo/index.html; from the shipped model, or from scratch where there is none
	$(BIN)/freqformer demo --output demo $(if $(VIDEO),--video "$(VIDEO)",) $(DEMO_FLAGS)

test: $(READY) ## the whole suite but long sweeps, on the CPU
	TRITON_INTERPRET=1 $(BIN)/pytest $(PARALLEL)

test-full: $(READY) ## long sweeps too
	TRITON_INTERPRET=1 $(BIN)/pytest $(PARALLEL) -m 'not gpu'

test-versions: ## the suite's core on every release of torch that is allowed, each in its own environment: requirements/tested.json
	$(PYTHON) tools/versions.py $(VERSIONS)

mutations: $(READY) ## seeded faults in the kernels, and which tests notice them: tests/mutation/results.json
	$(BIN)/python -m tests.mutation

fuzz: $(READY) ## damaged files, records and command lines: nothing but typed errors, for MINUTES=5
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED)

lint: $(READY) ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(READY) ## docs in site/
	$(BIN)/mkdocs build --strict

locks: $(READY) ## the versions that everything is installed in, for each release of torch: requirements/
	$(BIN)/python tools/locks.py make

check-locks: $(READY) ## that they can be installed on every platform and Python, asked of the plain registry: metadata only
	$(BIN)/python tools/locks.py check

clean:
	rm -rf .venv demo site
