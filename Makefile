# make run      install and start the gateway on config/edge.yaml
# make test     install what the tests need and run them
# make test-tornado   what speaks HTTP, on the other of the two HTTP servers
# make faults   the attack suite: kills, full disks, broken input; writes docs/faults.md
# make faults-selftest   put twelve defects into the code, one at a time, and see that the suite notices
# make bench    measure requests per second and CPU time per event
# make bench-memory   measure what memory it takes
# make bench-backlog   measure how fast a backlog is delivered
# make check    format, lint, types, generated docs (what CI runs before the tests)
# make docs     write the generated pages of docs/reference anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run install install-dev test test-tornado faults faults-selftest bench bench-memory bench-backlog check docs clean

run: install
	@$(BIN)/edge run

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml | $(BIN)/python
	@echo "installing edge-gateway into $(VENV) (once; takes about half a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: setup.py pyproject.toml | $(BIN)/python
	@echo "installing edge-gateway and what its tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

test: install-dev
	$(BIN)/python -m pytest

# What speaks HTTP, on the other server; what is marked both_servers has run on both by then.
test-tornado: install-dev
	EDGE_HTTP=tornado $(BIN)/python -m pytest -m "not both_servers" tests/edge/http tests/integration/test_ingest.py

BENCH_VENV := .venv-bench

$(BENCH_VENV)/.installed: bench/requirements.txt | $(BIN)/python
	@echo "installing the servers that ours is compared with into $(BENCH_VENV)"
	@$(BIN)/python -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@touch $@

# The whole matrix takes up to an hour; ROWS="a1 or b4" picks some of it.
faults: install-dev
	EDGE_FAULTS=full $(BIN)/python -m pytest tests/faults -v $(if $(ROWS),-k "$(ROWS)")

faults-selftest: install-dev
	$(BIN)/python tests/faults/selftest.py

# All of it takes about 45 minutes (with ROUNDS=5 SECS=2, half an hour) and writes docs/benchmarks.md;
# ROUNDS=2 SECS=1 ONLY="single batch" runs some of it.
bench: install-dev $(BENCH_VENV)/.installed
	$(BIN)/python -m bench.run --used-memory $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECS),--secs $(SECS)) $(if $(ONLY),--only "$(ONLY)")

# What a start, an idle connection and a million events take; EVENTS=0 leaves the events out.
bench-memory: install-dev
	$(BIN)/python -m bench.memory $(if $(EVENTS),--events $(EVENTS))

bench-backlog: install-dev
	$(BIN)/python -m bench.backlog

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python docs/generate.py --check
	$(BIN)/mypy

docs: install-dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
