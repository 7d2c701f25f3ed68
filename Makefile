# Two commands for a bare machine with Python 3.11 or newer: `make distill` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/cellphantom

# Every process would compile anew whatever it imports where none may write bytecode; the tests start two hundred.
export PYTHONDONTWRITEBYTECODE =

.PHONY: distill test pytest lint results clean

distill: $(VENV)/.installed
	$(BIN)/ptm-ray distill --data cellphantom --config tune_configs/first.toml --seed 0 --budget-minutes 0.5 --out $(OUT)

# Both at once: types keep one core busy for a minute.
test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

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

# Without compiling twenty thousand modules, of which a run imports a fifth and keeps what it has compiled itself.
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

# torch goes first: the rest then finds it present and brings no second build of it.
$(VENV)/.torch: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch
	$(PIP) --editable .
	@touch $@

# Not after the other: pip takes a while to find that most is there.
$(VENV)/.installed-dev: $(VENV)/.torch
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build *.egg-info
