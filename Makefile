# Every target explains itself: make help
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3.11
# Backends that are distributions of their own: a folder each, found here and nowhere named.
BACKENDS := $(patsubst %/pyproject.toml,%,$(wildcard backends/*/pyproject.toml))
DISTRIBUTIONS := proto/python pkg runtime sdk cli $(addprefix services/,gateway scheduler node-agent profiler registry) $(BACKENDS)
SOURCES := pkg runtime sdk cli services backends tests benchmarks examples deploy proto/generate.py
STAMP := $(VENV)/.tessera-setup
PYTEST := $(BIN)/python -m pytest -q
# Tests that share nothing run in several processes, a module in one (conformance: see its conftest.py); end-to-end tests have a platform each
# and the machine to themselves.
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile
# One line for all runs of pytest: how many tests were left out, and why (tests/conftest.py).
LEFT_OUT := awk '{n[$$0]++} END {for (why in n) {printf "%s%d (%s)", (at++ ? ", " : "left out here: "), n[why], why} if (at) print ""}'
PORT_BASE ?= 8000
COMPOSE = --port-base $(PORT_BASE) $(addprefix --with ,$(WITH))
SAY := printf '\033[2m%s\033[0m\n'
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help setup proto proto-check fmt lint types contracts unit golden conformance check integration test test-protobuf7 demo engine images compose-up compose-demo compose-down bench soak news clean

help: ## list every target
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  \033[1m%-15s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything pinned (seconds when it is there already)

$(STAMP): Makefile constraints.txt requirements-dev.txt $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(SAY) "setup 1/4: virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(SAY) "setup 2/4: torch (the largest download; which build, your package index decides)"
	@$(BIN)/pip install -q $$(grep -E '^torch==' constraints.txt) 2> >(grep -v -E '^WARNING' >&2)
	@$(SAY) "setup 3/4: libraries pinned in constraints.txt"
	@$(BIN)/pip install -q -c constraints.txt -r requirements-dev.txt 2> >(grep -v -E '^WARNING' >&2)
	@$(SAY) "setup 4/4: Tessera's own distributions (editable)"
	@$(BIN)/pip install -q --no-build-isolation -c constraints.txt $(patsubst cli,'cli[report]',$(patsubst services/profiler,'services/profiler[parquet]',$(patsubst services/registry,'services/registry[import]',$(addprefix -e ,$(DISTRIBUTIONS))))) 2> >(grep -v -E '^WARNING' >&2)
	@touch $@

proto: setup ## generate proto/python from proto/
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python proto/generate.py

proto-check: setup ## fail when the generated stubs are stale
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python proto/generate.py --check

fmt: setup ## format the code
	@$(BIN)/ruff format -q $(SOURCES) && $(BIN)/ruff check -q --fix-only --select I $(SOURCES)

lint: setup ## ruff: format and rules (the banned calls too)
	@$(BIN)/ruff format -q --check $(SOURCES) || { echo "run 'make fmt'" >&2; exit 1; }
	@$(BIN)/ruff check -q $(SOURCES)

types: setup ## mypy, strict (tests stay outside)
	@MYPYPATH=$$(echo $(addsuffix /src,$(BACKENDS)) | tr ' ' ':') $(BIN)/mypy $(addsuffix /src,$(BACKENDS)) pkg/src runtime/src sdk/src cli/src $(addsuffix /src,$(addprefix services/,gateway scheduler node-agent profiler registry)) benchmarks examples deploy proto/generate.py | tail -n 40; exit $${PIPESTATUS[0]}

contracts: setup ## import contracts (.importlinter)
	@$(BIN)/lint-imports --no-logo 2>&1 | tail -n 25; exit $${PIPESTATUS[0]}

unit: setup ## unit tests: values, fakes, virtual time
	@$(PYTEST) $(PARALLEL) tests/unit tests/golden $(addsuffix /tests,$(BACKENDS))

golden: setup ## re-write the golden files; review the difference
	@TESSERA_WRITE_GOLDEN=1 $(PYTEST) tests/golden && git diff --stat tests/golden

conformance: setup ## one suite per interface, over every implementation
	@$(PYTEST) $(PARALLEL) tests/conformance

check: ## the quick half: format, lint, types, contracts, stubs, unit, conformance
	@start=$$SECONDS; for part in proto-check lint types contracts unit conformance; do \
	  $(SAY) "check: $$part"; $(MAKE) -s $$part || exit 1; done; \
	  echo "check: all passed in $$((SECONDS - start)) s"

integration: setup ## real etcd, real processes, real models, faults
	@$(PYTEST) $(PARALLEL) tests/integration
	@$(PYTEST) tests/e2e

test: ## everything: check, then integration and end-to-end tests
	@left_out=$$(mktemp); export TESSERA_LEFT_OUT=$$left_out; \
	  $(MAKE) -s check && $(MAKE) -s integration; code=$$?; $(LEFT_OUT) $$left_out; rm -f $$left_out; exit $$code

test-protobuf7: ## the protocol tests beside the newer protobuf (constraints-protobuf7.txt), in an environment of their own
	@test -x .venv-protobuf7/bin/python || $(PYTHON) -m venv .venv-protobuf7
	@.venv-protobuf7/bin/pip install -q 'setuptools>=77' -c constraints-protobuf7.txt 2> >(grep -v -E '^WARNING' >&2)
	@.venv-protobuf7/bin/pip install -q --no-build-isolation -c constraints-protobuf7.txt -e proto/python -e pkg -e sdk -e services/gateway -e services/scheduler \
	  pytest pytest-asyncio pytest-timeout hypothesis 2> >(grep -v -E '^WARNING' >&2)
	@.venv-protobuf7/bin/python -m pytest -q tests/unit/rpc tests/unit/wire tests/unit/frames

demo: setup ## the main job on real models: bring up, register, profile, infer, explain, take down
	@$(BIN)/python -m examples.demo

engine: ## start a Docker Engine where none answers (root, Debian); deploy/engine.sh stop ends it
	@deploy/engine.sh start

images: setup ## build the container images that changed: make images [NAMES="gateway etcd"] [BASE_IMAGE=...] [TAG=dev]
	@$(BIN)/python -m deploy.images $(NAMES) $(addprefix --tag ,$(TAG))

compose-up: images ## a cluster by Compose, healthy: make compose-up [WITH="gpu observability pool"] [PORT_BASE=8000]
	@$(BIN)/python -m deploy.compose up $(COMPOSE)

compose-demo: setup ## what demo does, against the cluster of compose-up
	@$(BIN)/python -m examples.demo --endpoint 127.0.0.1:$$(($(PORT_BASE) + 1)) --token-file deploy/compose/secrets/admin_token

compose-down: setup ## take the cluster away, data and all; fails when something of it is left
	@$(BIN)/python -m deploy.compose down $(COMPOSE)

bench: setup ## one benchmark: make bench NAME=start|memory|density|gateway|packing|reclaim|fetch|hugepages|autoscaling|decision|picking|variants|modelless|transform|balance|twonodes|startpaths
	@test -n "$(NAME)" || { echo "NAME is missing: make bench NAME=start|memory|density|gateway|packing|reclaim|fetch|hugepages|autoscaling|decision|picking|variants|modelless|transform|balance|twonodes|startpaths" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.$(NAME)

soak: setup ## random requests, stops, evictions and kills, all checked: make soak MINUTES=30 [SEED=1] [KILLS=1]; or models that become each other: TRANSFORMATIONS=2000
	@cd tests/e2e && ../../$(BIN)/python -W ignore $(if $(TRANSFORMATIONS),e2e_transformations.py --transformations $(TRANSFORMATIONS),e2e_soak.py --minutes $(or $(MINUTES),30) $(if $(KILLS),--kills)) --seed $(or $(SEED),1)

news: setup ## print the next release's changes as they stand (newsfragments/)
	@$(BIN)/towncrier build --draft --version Unreleased

clean: ## remove the environments, the wheelhouse, the demo's state, benchmarks' results and caches
	@rm -rf $(VENV) .venv-protobuf7 .demo .wheelhouse .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache benchmarks/results
	@find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +
