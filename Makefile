# `make help` lists what there is. Every target does its own set-up first.

BIN := .venv/bin
LAB ?= .lab

.PHONY: help setup demo lab test test-fast check protos lock bench

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: ## Install Debian packages, the nbdkit vddk plugin and the virtual environment (idempotent)
	@deploy/dev/setup.sh

demo: setup ## Back up two simulated VMs, restore every disk of every point, compare
	@$(BIN)/python -m deploy.dev.demo

lab: setup ## Run a simulated site, a hub and an agent in the foreground; everything lies under LAB (default .lab)
	@$(BIN)/python -m deploy.dev.lab $(LAB)

test: check ## Run the whole test suite
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n 2 --dist loadfile

test-fast: setup ## Run the tests that take less than ten seconds each
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n 2 --dist loadfile -m "not slow"

check: setup ## ruff, mypy --strict, import contracts, protos in step
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/dev/check-protos.sh

protos: setup ## Generate the stubs and the descriptor image from proto/
	@PATH="$(CURDIR)/$(BIN):$$PATH" proto/generate.sh

lock: setup ## Write the hash lock of the Python packages anew (needs uv on PATH)
	@uv lock -q --python /usr/bin/python3
	@uv export -q --format requirements.txt --no-header --no-annotate --no-emit-project --extra dev \
	  -o deploy/dev/requirements.txt

bench: setup ## Measure speed against what an engineer would otherwise run
	@$(BIN)/python -m tests.bench
