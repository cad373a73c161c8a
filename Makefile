PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup sweep test lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: .venv/ready

sweep: .venv/ready
	$(BIN)/lightning-compress sweep digits

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --numprocesses 2 --dist loadgroup

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
