# Everything that this project does, by name. `make` lists it.
# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COLLECTION := .collections/ansible_collections/gpufleet/llm
LAB := lab/lab
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# --- Setting up ---

$(VENV)/.complete: requirements/dev.txt tools/setup
	@tools/setup $(PYTHON) $(VENV)

# A checkout runs as it is: Ansible finds this folder under the collection's name.
$(COLLECTION):
	@mkdir -p $(@D) && ln -sfn ../../.. $@

# What only one kind of test needs (a browser's driver, other people's clients) has an environment of its own: requirements/NAME.txt
# in .venv-NAME. A recipe or tools/test asks for it by `make .venv-NAME/.complete`.
.venv-%/.complete: requirements/%.txt tools/setup
	@tools/setup $(PYTHON) .venv-$* $*

# What lints prose comes from npm, pinned by hash in requirements/prose.
.venv-prose/.complete: requirements/prose/package-lock.json
	@mkdir -p $(@D) && cp requirements/prose/package*.json $(@D)
	@npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent && touch $@

.PHONY: setup
setup: $(VENV)/.complete $(COLLECTION) ## Install what the controller needs (apt packages, one virtual environment)

NAME ?= dev
.PHONY: requirements
requirements: $(VENV)/.complete ## Pin requirements/dev.txt again, with hashes; NAME=other for requirements/other.txt
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements/$(NAME).txt requirements/$(NAME).in

# --- The throw-away fleet ---

.PHONY: demo
demo: setup ## Build a throw-away GPU host and converge it with site.yml
	@tools/demo up

.PHONY: demo-down
demo-down: ## Remove the throw-away host and all that belongs to it
	@tools/demo down

RELEASES ?=
.PHONY: real-server
real-server: ## Build the real Ollama server for the lab, by name from the package registries (about 17 min, once); RELEASES=all for the one to upgrade from too
	@$(PYTHON) lab/real/build $(RELEASES)

# --- Tests ---

.PHONY: test
test: setup ## Every test that a change has to pass
	@tools/test all

.PHONY: test-fast
test-fast: setup ## Lint of what has changed and the unit tests but the slow ones, for the inner loop: under a minute
	@tools/test fast

.PHONY: test-full
test-full: setup ## All of it, with the long scenarios
	@tools/test full

JOBS ?= 1
.PHONY: long
long: setup ## The long scenarios whose inputs have changed since they were last green; JOBS=2 for two at a time
	@$(BIN)/python tools/long run --jobs $(JOBS)

.PHONY: long-status
long-status: setup ## When each long scenario was last green
	@$(BIN)/python tools/long status

SEED ?= 1
SAMPLE ?= 60
PACKAGES ?=
.PHONY: mutate
mutate: setup .venv-mutate/.complete ## Plant mistakes in the packages and see whether a test fails (hours); SEED=2, SAMPLE=60, PACKAGES="plan guard_policy"
	@$(BIN)/python tools/mutate run --seed $(SEED) --sample $(SAMPLE) $(PACKAGES)
	@$(BIN)/python tools/mutate report --write

SCENARIO ?= default
.PHONY: scenario
scenario: setup ## One Molecule scenario, SCENARIO=default; LAB_PLATFORM=ubuntu2404 makes its host another system
	@tools/test scenario $(SCENARIO)

.PHONY: lint
lint: setup ## Linters only
	@tools/test lint

.PHONY: unit
unit: setup ## Unit tests only
	@tools/test unit

.PHONY: sanity
sanity: setup ## ansible-test sanity only
	@tools/test sanity

.PHONY: integration
integration: setup ## ansible-test integration: the module ollama_model as a play calls it, on the stand-in
	@tools/test integration

.PHONY: contract
contract: setup ## The contract suite against the stand-in and, where it is built, the real server
	@tools/test contract

.PHONY: gateway
gateway: setup ## The gateway under the distribution's nginx: every route and caller, fuzzed bodies, other people's clients
	@tools/test gateway

.PHONY: bench-gateway
bench-gateway: setup ## Runner starts, first byte, parallel streams and hostile bodies through the gateway
	@PYTHONPATH=.collections $(BIN)/python bench/gateway.py
	@PYTHONPATH=.collections $(BIN)/python bench/gateway_bodies.py --write

.PHONY: bench-plan
bench-plan: setup ## The plan's formula beside the real server's dry run
	@$(BIN)/python bench/plan.py

.PHONY: bench-load
bench-load: setup ## The plan beside what the real server then takes of a simulated card
	@$(BIN)/python bench/load.py

.PHONY: bench-model
bench-model: setup ## What a declared model asks of the real server: requests, writes, time; 500 random declarations
	@$(BIN)/python bench/model.py

.PHONY: bench-guard
bench-guard: setup ## What a tick of the guard costs
	@$(BIN)/python bench/guard.py

.PHONY: bench-rounds
bench-rounds: setup ## What ten rounds of conversation send to the model, with our settings and without
	@$(BIN)/python bench/rounds.py

# --- The collection ---

.PHONY: build
build: setup ## Build the collection's archive
	$(BIN)/ansible-galaxy collection build --force

.PHONY: importer
importer: .venv-importer/.complete ## Have Galaxy's own importer read the built archive
	@tools/importer

.PHONY: docs
docs: .venv-docs/.complete ## Build the documentation site into .cache/docs/html
	@tools/docs site

.PHONY: docs-roles
docs-roles: .venv-docs/.complete ## Write roles/*/README.md from the roles' argument specs
	@tools/docs roles

.PHONY: prose
prose: setup .venv-prose/.complete ## Lint the English of the documentation
	@tools/prose

.PHONY: clean
clean: ## Remove what the targets above have made in this folder
	rm -rf $(VENV) .venv-* .cache gpufleet-llm-*.tar.gz
