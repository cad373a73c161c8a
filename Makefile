PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup sweep tables test lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: .venv/ready

sweep: .venv/ready
	$(BIN)/lightning-compress sweep digits

tables: .venv/ready
	$(BIN)/lightning-compress table --render

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --numprocesses 2 --dist loadgroup

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
