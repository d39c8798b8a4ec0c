# Stride's tasks; `make` alone lists them. Everything runs in .venv, which every target brings up to date first.
.DEFAULT_GOAL := help
.PHONY: help setup demo stop test lint format bench lock clean

BIN := .venv/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create or update .venv from the hash-pinned requirements
	@infra/setup.sh

demo: setup ## fit, compare, promote, serve and ask a digits model; leaves both servers running
	@$(BIN)/python -m pipelines.demo

stop: ## stop the servers that demo or `stride serve` started
	@if [ -x $(BIN)/stride ]; then $(BIN)/stride stop; else echo "nothing to stop: there is no .venv"; fi

test: setup ## run the tests (no Docker, no GPU, no network)
	@$(BIN)/python -m pytest -q

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## let ruff format and repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## measure loop, augmentation and one warm prediction; fails below the bars
	@$(BIN)/python -m benchmarks.loop --recipe mnist --precision fp32
	@$(BIN)/python -m benchmarks.augmentation
	@$(BIN)/python -m pipelines.demo >/dev/null
	@$(BIN)/python -m benchmarks.predict

lock: setup ## resolve the requirements files again (UV_OPTIONS=--upgrade for newer versions)
	@infra/lock.sh $(UV_OPTIONS)

clean: stop ## remove .venv and the caches; what was trained (.stride) stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
