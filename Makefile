# Everything a fresh machine needs: `make train` and `make test` each set up .venv and do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
RUN_DIR ?= runs/ml10
# A file stays with one worker, so that its fixtures are made once; the longest files are begun first.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 15

.PHONY: setup train test test-slow test-all evaluate check smoke soak bench docs lowest clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "hmrl needs Python 3.11 or newer: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: setup  ## Train HiMeta on ML10; run it again to continue after an interruption.
	$(BIN)/hmrl fit --config configs/ml10.yaml --run_dir $(RUN_DIR) --ckpt_path last

evaluate: setup  ## The table of a trained agent, on the reference simulator.
	$(BIN)/hmrl test --config configs/ml10.yaml --run_dir $(RUN_DIR) --ckpt_path last

test: setup  ## Is anything broken? About five minutes on two cores.
	$(PYTEST) -m "not slow"

test-slow: setup  ## What `make test` leaves out: whole runs, several processes, every overlay.
	$(PYTEST) -m slow

test-all: setup  ## Both.
	$(PYTEST)

smoke: setup  ## Train and evaluate on real ML10, in miniature.
	$(BIN)/hmrl fit --config configs/ml10.yaml --config configs/smoke.yaml --overwrite true

soak: setup  ## Interrupt and kill a run at random moments; it must end up equal to a run in peace.
	$(BIN)/python scripts/soak.py

bench: setup  ## How fast is it? Ratios to the raw simulator and to Meta-World's own stepping; runs/bench.json.
	$(BIN)/python benchmarks/bench.py

docs: setup  ## The documentation site, in build/docs; a broken link fails.
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lowest:  ## Do the lowest versions that pyproject.toml allows work? In an environment of their own.
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) scripts/lowest.py > $(LOWEST)/versions.txt
	$(LOWEST)/bin/pip install --quiet --upgrade pip
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/versions.txt torch
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/versions.txt --editable . pytest pytest-xdist
	$(LOWEST)/bin/hmrl fit --config configs/ml10.yaml --config configs/smoke.yaml --run_dir runs/lowest --overwrite true
	$(LOWEST)/bin/python -m pytest tests/integration/test_bad_input.py

clean:
	rm -rf $(VENV) $(LOWEST) build .pytest_cache .mypy_cache .ruff_cache
