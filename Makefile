PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow coverage mutations reproduce-paper lint lock format bench clean
SCALE ?= cpu
PAPER ?= all

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/; s/\$$\$$/$$/' | sort | awk -F '\t' '{printf "  %-10s %s\n", $$1, $$2}'

venv: $(READY) ## make .venv with everything the project needs (again only when pyproject.toml or the lock changed)

$(READY): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock -e '.[dev]'
	touch $@

lock: ## pin in requirements.lock the newest releases that pyproject.toml allows
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	$(BIN)/pip freeze --disable-pip-version-check --exclude-editable > .venv/lock && mv .venv/lock requirements.lock

demo: venv ## the main job: train a tensor-train network with NN-BCD, then show its table and where its pictures are
	$(BIN)/nncompress train solver=nnbcd model=tt_mlp
	@run=$$(ls -td outputs/nnbcd-tt_mlp-digits/*/ | head -n 1) && for table in $${run}tables/*.md; do echo; cat $$table; done \
	  && echo && ls $${run}plots/*.png

test: lint ## lint, then the tests, a process for each core
	$(BIN)/pytest -n auto --dist loadfile

test-slow: venv ## kills, several processes, packaging, a browser, and real data where $$NNCOMPRESS_DATA has them
	$(BIN)/pytest -m slow -n auto --dist worksteal

coverage: venv ## the tests once more, with the lines and branches that they reach
	$(BIN)/pytest -n auto --dist loadfile --cov=nncompress --cov-branch --cov-report=term-missing:skip-covered

mutations: venv ## do the tests notice 40 small wrong edits?
	$(BIN)/python scripts/mutations.py

reproduce-paper: venv ## the papers' experiments beside their published figures (SCALE=smoke|cpu|gpu, PAPER=nnbcd|slimming|sparsefw|lc|cross)
	$(BIN)/nncompress reproduce $(PAPER) --scale $(SCALE)

lint: venv ## formatting, lint, types and the import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv ## format the code and mend what ruff can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: venv ## time the compressions, solvers' steps and compact networks, most against their plain forms
	$(BIN)/python -m scripts.benchmarks.compressions
	$(BIN)/python -m scripts.benchmarks.nnbcd_sweep
	$(BIN)/python -m scripts.benchmarks.nnbcd_scale
	$(BIN)/python -m scripts.benchmarks.lc_steps
	$(BIN)/python -m scripts.benchmarks.minibatches
	$(BIN)/python -m scripts.benchmarks.frank_wolfe
	$(BIN)/python -m scripts.benchmarks.compact_layers

clean: ## remove caches and builds; .venv and outputs stay
	rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
