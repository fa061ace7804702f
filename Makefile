# Every target sets up what it needs: a .venv from the hashed lock file, then this checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint soak bench bench-peers lock clean
.DEFAULT_GOAL := help

help:  ## Say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)  ## Everything on this machine, without an AWS account
	$(BIN)/collector demo $(ARGS)

test: $(STAMP)  ## The whole suite, against a real PostgreSQL
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: $(STAMP)  ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(STAMP)  ## Twenty simulated days of polling with random faults
	$(BIN)/python -m tests.soak --days 20 $(ARGS)

bench: $(STAMP)  ## The benchmarks, as a table of ratios
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(STAMP)  ## What other tools take for the same rows, in an environment of their own
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	BENCH_PEERS=.venv-peers $(BIN)/python -m benchmarks $(ARGS)

lock: $(STAMP)  ## Renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --extra embedded --group dev --output-file requirements.lock pyproject.toml

clean:  ## Remove what make made
	rm -rf $(VENV) .venv-peers dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
