# make demo    set up a fresh machine (Python 3.11 or newer) and run the default journey
# make test    set up a fresh machine and pass every check
# make lint    ruff and mypy only
# make mutations   plant faults in copies of the source: the tests must notice each (ARGS=--list, JOBS=1 or 2)
# make docs    write docs/cli.md again
# make bench   ours against its peers; writes runs/bench/results.json (benchmarks/README.md)
# make peers   install those peers, outside the project's own environment
# make clean   remove the virtual environment and the caches (never runs/)
# Settings: PYTHON=..., VENV=..., OUT=runs/demo, JOBS=2 (test processes), ARGS=... (for `bloomery run`),
#           BENCH=rollout,sft SIZE=S,M ROUNDS=5 (for `make bench`; ARGS=... go to it too)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
OUT    ?= runs/demo
JOBS   ?= 2
ARGS   ?=
BENCH  ?=
SIZE   ?= S
ROUNDS ?= 5
PEERS  ?= runs/bench/peers

BIN  := $(VENV)/bin
# Bars on a terminal, silence in a pipe. A slow or broken connection is tried again: pip retries each file,
# the loop retries pip.
QUIET := $(shell test -t 2 && echo --quiet || echo --quiet --quiet --progress-bar off)
PIP   := $(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --retries 10 --timeout 60 \
         --log $(VENV)/install.log -c constraints.txt
AGAIN = for try in 1 2 3; do $(1) && exit 0; echo "==> try $$try failed"; sleep $$((try * 5)); done; \
        echo "==> the installation failed three times; see $(VENV)/install.log" >&2; exit 1

.DEFAULT_GOAL := help
.PHONY: help demo test mutations lint docs bench peers clean

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V): Python 3.11 or newer is needed (make PYTHON=...)" >&2; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "cannot create a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.demo-stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing bloomery and torch (a few minutes the first time)"
	@$(call AGAIN,$(PIP) -e .)
	@touch $@

$(VENV)/.test-stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing bloomery, torch and the test tools (a few minutes the first time)"
	@$(call AGAIN,$(PIP) -e ".[test]")
	@touch $@ $(VENV)/.demo-stamp

demo: $(VENV)/.demo-stamp
	@$(BIN)/bloomery run --out $(OUT) $(ARGS)

lint: $(VENV)/.test-stamp
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy

test: lint
	@echo "==> pytest ($(JOBS) processes)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

mutations: $(VENV)/.test-stamp
	@PYTHONPATH=tests $(BIN)/python -m mutations -j $(JOBS) $(ARGS)

docs: $(VENV)/.test-stamp
	@$(BIN)/python dev/write_cli_docs.py

bench: $(VENV)/.test-stamp
	@$(BIN)/python benchmarks/bench.py $(if $(BENCH),--work $(BENCH)) --size $(SIZE) --rounds $(ROUNDS) $(ARGS)

# Two versions of TRL, each in an environment of its own, and two repositories to read.
peers: $(PEERS)/trl/.done $(PEERS)/trl-ppo/.done $(PEERS)/nanoGPT $(PEERS)/nanochat

$(PEERS)/trl/.done: PACKAGE = trl==1.16.0
$(PEERS)/trl-ppo/.done: PACKAGE = trl==1.12.0
$(PEERS)/%/.done: constraints.txt
	@echo "==> installing $(PACKAGE) into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$(PACKAGE)"
	@touch $@

$(PEERS)/nanoGPT $(PEERS)/nanochat:
	@git clone --quiet --depth 1 https://github.com/karpathy/$(@F) $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
