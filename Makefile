# hotswap: `make demo` and `make test` on a fresh machine need Python 3.11+, pip, make and a C++ compiler.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt
PYTEST := $(BIN)/pytest
ARGS   ?=
# For bench-peers: llama.cpp's llama-server and source tree, an environment with vLLM; how hotswap is served beside them,
# by default with room for 8,192 tokens as they are.
LLAMA_SERVER ?=
LLAMA_SOURCE ?=
VLLM   ?=
SERVE  ?= --kv-cache-gb 0.38
# A worker a core, of one thread each (tests/conftest.py); with workers, neighbours in a file mostly stay together.
WORKERS := -n auto --maxprocesses 8 --dist worksteal
REQUIREMENTS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
# Tests start a hundred processes, and each would compile what it imports of us where no bytecode may be written.
export PYTHONDONTWRITEBYTECODE :=
# The files with such tests: the others need not be imported to be left out.
NUMERIC = $(shell grep -rl --include='test_*.py' 'mark\.numeric' tests)

.DEFAULT_GOAL := help
.PHONY: help install hooks base demo serve loadtest soak bench bench-peers perplexity adapter-memory lint format test
.PHONY: test-fast test-numeric-avx2 test-slow test-gpu
.PHONY: dashboards endpoints screenshots test-clients test-conformance
.PHONY: families method-results method-results-full tool-calls versus-trl test-peers clean distclean

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install hotswap with its development tools into it

# Reruns only when the requirements or the native sources change. The native libraries are compiled beside pip's work, and
# are up to date when hotswap itself is installed. torch comes first: everything else is resolved around it. What pip
# unpacks becomes bytecode where it is imported: a third of it ever is.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard hotkernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hotswap needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools>=77'
	$(BIN)/python -c '$(REQUIREMENTS)' > $(VENV)/requirements.txt
	$(BIN)/python setup.py -q build_ext --inplace & built=$$!; \
	  $(PIP) torch && $(PIP) -r $(VENV)/requirements.txt; installed=$$?; wait $$built && exit $$installed
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

hooks: $(STAMP) ## let git run the linters before each commit
	$(BIN)/pre-commit install

base: $(STAMP) ## import the default base model into the local cache, once
	$(BIN)/hotswap base import

demo: $(STAMP) ## train, serve and hot-swap adapters end to end, and print a report
	$(BIN)/hotswap demo $(ARGS)

serve: base ## serve the default base; more flags: make serve ARGS="--port 9000"
	$(BIN)/hotswap serve $(ARGS)

loadtest: $(STAMP) ## drive a running server: make loadtest ARGS="--url http://127.0.0.1:8000 --models base"
	$(BIN)/python -m loadtests $(ARGS)

soak: base ## minutes of load, changes, rude clients and faults, all answers compared: make soak ARGS="--seconds 3600"
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.soak_references --base "$$($(BIN)/hotswap base path)" --out soak-out
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m loadtests.soak --references soak-out $(ARGS)

bench: base ## speed over HTTP and of every op, minutes: make bench ARGS="--rounds 5"
	$(BIN)/python -m benchmarks.speed --base "$$($(BIN)/hotswap base path)" $(ARGS)
	$(BIN)/python -m benchmarks.adapter_loading --base "$$($(BIN)/hotswap base path)"
	$(BIN)/python -m benchmarks.kernels --rows 1,8,32,128 --seconds 0.3 --no-twins

bench-peers: base ## the same beside llama.cpp and vLLM: benchmarks/README.md says how to get them
	$(BIN)/python -m benchmarks.speed --base "$$($(BIN)/hotswap base path)" --rivals --rounds 2 --out bench-peers-out \
	  --llama-server "$(LLAMA_SERVER)" --llama-source "$(LLAMA_SOURCE)" --vllm "$(VLLM)" --serve "$(SERVE)" \
	  --page docs/benchmarks.md $(ARGS)

perplexity: base ## perplexity and memory of each quantization: make perplexity ARGS="--text FILE"
	$(BIN)/python -m benchmarks.perplexity $(ARGS)

adapter-memory: base ## memory with 1, 100 and 1,000 resident adapters
	$(BIN)/python -m benchmarks.adapter_memory --base "$$($(BIN)/hotswap base path)" $(ARGS)

method-results: base ## methods side by side on published sets: make method-results ARGS="--data FOLDER"
	$(BIN)/python -m benchmarks.method_results $(ARGS)

method-results-full: base ## the same at ten times the budget, on 1,000 test rows
	$(BIN)/python -m benchmarks.method_results --budget 10 --rows 1000 --out method-results-full $(ARGS)

tool-calls: base ## a LoRA trained to call tools, asked over HTTP: make tool-calls ARGS="--data FOLDER"
	$(BIN)/python -m benchmarks.tool_calls $(ARGS)

versus-trl: base ## our LoRA training beside TRL's: make versus-trl ARGS="--recipe snips --data FOLDER"
	$(BIN)/python -m benchmarks.versus_trl $(ARGS)

families: $(STAMP) ## measure every model family and write docs/families.md
	$(BIN)/python -m tests.server.model.families.table

lint: $(STAMP) ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(STAMP) ## the test suite that CI runs, ten minutes on two cores
	$(PYTEST) $(WORKERS) $(ARGS)

test-fast: $(STAMP) ## the part of it that takes two minutes
	$(PYTEST) $(WORKERS) -m 'not long and not slow and not gpu and not peers' $(ARGS)

test-numeric-avx2: $(STAMP) ## the tests of the CPU's arithmetic, as on a machine with AVX2 only
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	  $(PYTEST) $(WORKERS) -m 'numeric and not slow and not gpu and not peers' $(NUMERIC) $(ARGS)

test-slow: base ## real training and serving on the default base
	$(PYTEST) -m slow $(ARGS)

test-gpu: $(STAMP) ## what needs a CUDA device
	$(PYTEST) -m gpu $(ARGS)

test-peers: $(STAMP) ## what needs a rival server installed
	$(PYTEST) -m peers $(ARGS)

test-clients: $(STAMP) ## the examples with other clients, in an environment of their own
	test -x .clients/bin/python || $(BIN)/python -m venv .clients
	.clients/bin/python -m pip install --disable-pip-version-check -q -r examples/clients/requirements.txt
	HOTSWAP_CLIENTS_PYTHON=$(CURDIR)/.clients/bin/python $(PYTEST) -m clients $(ARGS)

test-conformance: $(STAMP) ## thousands of requests made from the description of the API, right and wrong ones
	$(PYTEST) -m 'slow or not slow' tests/server/api/test_openapi_conformance.py $(ARGS)

screenshots: base ## take the pictures of docs/console.md, with the adapters that make demo left
	mkdir -p bench-out/console
	$(BIN)/python -m tests.server.console.screenshots --work bench-out/console $(ARGS)

endpoints: $(STAMP) ## write docs/endpoints.md from the code
	$(BIN)/python -m hotswap.endpoints_page docs/endpoints.md

dashboards: $(STAMP) ## write deploy/grafana/dashboards from deploy/grafana/*.py
	$(BIN)/python -m deploy.grafana.make

clean: ## remove outputs and caches of tools; keeps .venv and the base model
	rm -rf build dist *.egg-info demo-out soak-out bench-out bench-peers-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv and .clients too
	rm -rf $(VENV) .clients
