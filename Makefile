# Everything a fresh machine needs: `make demo` or `make test`. CI calls nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
TORCH := torch==2.13.0
# One thread a process: two pytest workers share two cores without fighting for them.
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo test suite lint types format page docs versions clean

help:  ## Show what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## Create the environment, install, and run `ilrec run` on the generated store
	$(BIN)/ilrec run --output_dir runs/demo

test: $(VENV)/.installed-dev lint types suite  ## Create the environment, install, lint, type-check and run the whole suite

page: $(VENV)/.installed-dev  ## Write docs/compatibility.md from the compatibility tests, and the options in docs/cli.md
	$(BIN)/python -m tests.compatibility.page
	$(BIN)/python -m tests.docs.options

docs: $(VENV)/.installed-dev  ## Build the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

versions:  ## Run the trainer's tests on the oldest and the newest supported versions, each in an environment of its own
	$(PYTHON) tests/compatibility/versions.py '$(TORCH)'

suite: $(VENV)/.installed-dev  ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=15

lint: $(VENV)/.installed-dev  ## Check style and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## Check types with mypy
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## Fix style and formatting in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build dist site *.egg-info runs .pytest_cache .mypy_cache .ruff_cache

# torch comes first and by its exact version, so that a CPU wheel offered by pip's configuration is taken
# before any other requirement can pull a build for another device.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "got $$($(PYTHON) --version); ilrec-trl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
