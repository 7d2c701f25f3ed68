# Two commands for a bare machine with Python 3.11 or newer: `make distill` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/cellphantom

.PHONY: distill test pytest lint results clean

distill: $(VENV)/.installed
	$(BIN)/ptm-ray distill --data cellphantom --config tune_configs/first.toml --seed 0 --budget-minutes 0.5 --out $(OUT)

# Both at once: types keep one core busy for a minute.
test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

# Some two hundred processes start, each of which would compile this package anew where none may write bytecode.
pytest: export PYTHONDONTWRITEBYTECODE =
pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tables of README, hours on two cores; goes on where it was stopped. DATA_ROOT: folder of the four npz files.
results: $(VENV)/.installed
	$(BIN)/ptm-ray bench tune_configs/suites/local.toml --data-root $(DATA_ROOT) --out docs/bench/local
	$(BIN)/python -m benchmarks.readme docs/bench/local

PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# On all cores, where pip compiles one module after another. Some packages hold templates that don't compile.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# torch goes first: the rest then finds it present and brings no second build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@$(COMPILE)
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
