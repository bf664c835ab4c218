# `make` alone lists what there is.
.DEFAULT_GOAL := help
.PHONY: help install run test test-slow lint format smoke bench stress posterior lectures tables fuzz clean

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

help: ## list the goals
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the pinned versions (once; again when pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "scorefield needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

run: install ## train, measure and sample the digits model; leaves outputs/digits/report.html
	$(BIN)/scorefield train run_dir=outputs/digits

test: install ## the default test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu'

test-slow: install ## the tests that take longer
	$(BIN)/python -m pytest -m slow

lint: install ## ruff's rules and format, and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

EXPERIMENTS = $(notdir $(basename $(wildcard conf/experiment/digits*.yaml conf/experiment/toy_*.yaml)))

smoke: install ## one training step and every evaluation of each digits and toy experiment
	@rm -rf outputs/smoke; set -e; for name in $(EXPERIMENTS); do \
	  echo "== $$name"; \
	  $(BIN)/scorefield train experiment=$$name debug=one_batch outputs=outputs/smoke; \
	done

bench: install ## what every part costs beside the network alone, and the network beside the machine (long)
	$(BIN)/python experiments/speed/bench.py

stress: install ## kill runs at random moments, resume them, compare bit for bit (long)
	$(BIN)/python experiments/stress/stress.py

posterior: install ## every posterior sampler and guidance on mixtures whose posterior is known (some minutes)
	$(BIN)/python experiments/posterior/mixtures.py

lectures: install ## run every claim of the lectures; leaves outputs/lectures/index.html
	$(BIN)/python experiments/lectures/run.py --jobs 2

tables: install ## make the papers' tables at small scale, two runs at a time (long); finished runs count
	$(BIN)/python experiments/paper_tables/run.py --jobs 2

fuzz: install ## 2000 mutated command lines, 500 mutated files of each kind (long)
	$(BIN)/python -m pytest -m slow -s tests/cli/test_fuzz_config.py tests/cli/test_fuzz_files.py

clean: ## remove caches and build files; keeps outputs and .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
