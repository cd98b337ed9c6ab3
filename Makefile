# Every target sets itself up: `make setup` does nothing when the environment is in place.
PYTHON ?= python3
RUN := .venv/bin/python
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo check test test-slow test-chaos bench format clean

setup:
	@PYTHON=$(PYTHON) scripts/setup.sh

demo: setup
	@$(RUN) -m orchestrator.cli run jobs/quickstart.yaml --exit --json

check: setup
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

# Unit tests share no process, port or Ray: two at a time. The others have one Ray, and times that must not be shared.
test: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow and not chaos" -n 2 tests/unit
	$(RUN) -m pytest -m "not slow and not chaos" --ignore tests/unit

test-slow: setup
	$(RUN) -m pytest -m slow

test-chaos: setup
	$(RUN) -m pytest -m "chaos and not slow"

bench: setup
	$(RUN) benchmarks/start.py

format: setup
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
