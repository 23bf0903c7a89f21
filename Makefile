# Everything on a fresh checkout: `make demo`, `make test`. All set-up happens in .venv and in ~/.cache/art (ART_CACHE).

PYTHON ?= $(shell for each in python3.11 python3; do $$each -c '' 2>/dev/null && echo $$each && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml contrib/*/pyproject.toml)))

# Fast to slow, so that a broken rule shows in seconds; a folder not named here comes last. Faults fork their victims from
# the tests' own process, so they come before what fills its memory: a fork copies the tables of all of it.
ORDER := $(addprefix tests/,architecture art_core faults plugins flow)
FOLDERS := $(filter-out %__pycache__,$(patsubst %/,%,$(wildcard tests/*/)))
TESTS := $(filter $(FOLDERS),$(ORDER)) $(filter-out $(ORDER),$(FOLDERS))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-rgw envs lint bench clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## Train a real 135M model on this machine; e.g. make demo ARGS="--steps 5"
	@$(BIN)/art demo $(ARGS)

test: lint ## Linters, types, import arrows, then every test not marked heavy
	$(BIN)/pytest -m "not heavy" $(TESTS)

test-all: envs ## The tests marked heavy: minutes long, or with an environment of their own
	$(BIN)/pytest -m heavy $(TESTS)

test-rgw: $(STAMP) ## The S3 store against Ceph RGW; installs that on Debian (64 MB) and starts it
	@command -v radosgw >/dev/null || apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
	$(BIN)/python -m tests.servers.rgw $(BIN)/pytest tests/plugins/art_s3

envs: $(STAMP) ## The interpreters of their own that engines and trainers need, built once in ~/.cache/art (gigabytes)
	$(BIN)/art env create --all --device cpu

lint: $(STAMP) ## Ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## Every benchmark; each prints one JSON document as its last line
	@for file in $(wildcard benchmarks/*.py); do echo "$$file"; $(BIN)/python $$file || exit 1; done

clean: ## Remove .venv, caches and build outputs; runs (.art) are kept
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(PLUGINS:%=%/pyproject.toml) constraints.txt
	@$(or $(PYTHON),python3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ART needs Python 3.11 or newer; try: make PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (PyTorch included, so this takes a minute or two; later calls skip it)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
		-e '.[demo,test]' $(PLUGINS:%=-e %) >$(LOG) 2>&1 \
		|| { cat $(LOG); echo "set-up failed; what pip said is above and in $(LOG)"; exit 1; }
	@touch $@
