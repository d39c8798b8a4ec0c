# Stride's tasks; `make` alone lists them. Everything runs in .venv, which every target brings up to date first.
.DEFAULT_GOAL := help
.PHONY: help setup demo stop test test-compose lint format bench lock up down logs secrets backup restore clean

BIN := .venv/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create or update .venv from the hash-pinned requirements
	@infra/setup.sh

demo: setup ## fit, compare, promote, serve and ask a digits model; leaves both servers running
	@$(BIN)/python -m pipelines.demo

stop: ## stop the servers that demo or `stride serve` started
	@if [ -x $(BIN)/stride ]; then $(BIN)/stride stop; else echo "nothing to stop: there is no .venv"; fi

test: setup ## run the tests (no Docker, no GPU, no network)
	@$(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile

test-compose: setup ## run the tests of the Docker stack (needs an engine; minutes)
	@STRIDE_TEST_COMPOSE=1 $(BIN)/python -m pytest -q tests/compose

lint: setup ## ruff, mypy and hadolint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/hadolint infra/images/Dockerfile

format: setup ## let ruff format and repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## measure the fit and the service beside other programs, on a quiet machine; fails below the bars
	@status=0; \
	$(BIN)/python -m benchmarks.loop --recipe mnist --precision fp32 || status=1; \
	$(BIN)/python -m benchmarks.augmentation || status=1; \
	$(BIN)/python -m benchmarks.checkpoints || status=1; \
	$(BIN)/stride bench serve || status=1; \
	$(BIN)/stride bench train || status=1; \
	exit $$status

lock: setup ## resolve the requirements files again (UV_OPTIONS=--upgrade for newer versions)
	@infra/lock.sh $(UV_OPTIONS)

up: ## the whole stack in Docker, on the GPU where there is one; returns when it is ready
	@infra/up.sh $(OPTIONS)

down: ## stop the stack and remove its containers; its data stays
	@docker compose --profile '*' down --remove-orphans

logs: ## follow the stack's logs
	@docker compose --profile '*' logs --follow --tail 100

secrets: ## show the stack's API key of the training service and the passwords of Grafana and nginx
	@docker compose run --rm --no-deps -T --entrypoint sh secrets -c 'tail -n +1 /secrets/jobs/keys /secrets/grafana/password /secrets/edge/password'

backup: ## MLflow's data base and artifacts of the stack into FILE
	@infra/backup.sh "$(FILE)"

restore: ## put the backup FILE into a fresh stack
	@infra/restore.sh "$(FILE)"

clean: ## remove .venv, caches, .stride and the Docker stack with its data; asks first (YES=1: does not)
	@infra/clean.sh "$(YES)"
