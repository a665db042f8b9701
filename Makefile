# Everything a user or CI does. Needs only make and Python; `setup` does the rest in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Test workers: every core up to four, one test file on one worker.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train evaluate test check format clean

ifneq ($(filter train,$(MAKECMDGOALS)),)
ifeq ($(strip $(TASK)),)
$(error TASK is missing; for example: make train TASK=stacking)
endif
endif
ifneq ($(filter evaluate,$(MAKECMDGOALS)),)
ifeq ($(strip $(POLICY)),)
$(error POLICY is missing; for example: make evaluate POLICY=stacking)
endif
endif

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
		while IFS='|' read -r name what; do printf '%-18s%s\n' "$$name" "$$what"; done

setup: $(STAMP)  ## make .venv and install the package into it (again when pyproject.toml changes)

# A venv that cannot run pip is the rest of an interrupted or failed attempt: it is made anew.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
		echo "visuomotor: '$(PYTHON)' is not installed; name a Python >= 3.11: make setup PYTHON=python3.12" >&2; \
		exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "visuomotor: Python >= 3.11 is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); name another: make setup PYTHON=python3.12" >&2; \
		exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

train: $(STAMP)  ## train a policy: make train TASK=stacking [ARGS="seed=1 ..."]
	$(BIN)/python -m visuomotor.train task=$(TASK) $(ARGS)

evaluate: $(STAMP)  ## measure a policy: make evaluate POLICY=stacking [ARGS="episodes=500 ..."]
	$(BIN)/python -m visuomotor.evaluate policy=$(POLICY) $(ARGS)

test: $(STAMP)  ## run the quick tests [ARGS="-m slow", "tests/test_ppo.py", ...]
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

check: $(STAMP)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## sort imports, fix what can be fixed, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
