.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
# CPython 3.11 by whatever name it has.
PYTHON ?= $(shell for name in python3.11 python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	&& echo "$$name" && break; done)
UV := $(shell command -v uv 2>/dev/null)
STAMP := $(VENV)/.millstream-setup
# Parallel test processes. Each has a broker (0.3 GB) and TensorFlow (1 GB) of its own.
WORKERS ?= 2

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/'

.PHONY: help setup demo test lint bench soak lock clean

setup: $(STAMP) ## everything from PyPI and Maven Central into .venv and the cache; idempotent

# A linked .venv belongs to somebody else: it is used as it is, or dropped if it leads nowhere.
$(STAMP): requirements.lock pyproject.toml deploy/kafka-jars.lock deploy/flink-jars.lock
	@if [ -L $(VENV) ] && [ -x $(BIN)/python ]; then \
		echo "setup: $(VENV) is a link and is used as it is"; $(MAKE) --no-print-directory fetch; \
	else \
		if [ -L $(VENV) ]; then rm $(VENV); fi; \
		$(MAKE) --no-print-directory install && touch $(STAMP); fi

.PHONY: install
install:
	@test -n "$(PYTHON)" || { echo "setup: CPython 3.11 is needed (python3.11 or python3)"; exit 2; }
# --seed: the download of the demo's data set runs pip.
ifdef UV
	test -x $(BIN)/python || $(UV) venv --quiet --seed --python "$(PYTHON)" $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
endif
# What serving has Numba compile is compiled now, and not while the first instance starts.
	$(BIN)/python -c "import inference.server, inference.tensor_bytes"
	$(MAKE) --no-print-directory fetch

.PHONY: fetch
fetch:
	$(BIN)/python -m deploy.kafka
	$(BIN)/python -m deploy.flink
# Prism is built by Go (minutes, once); without it all but `--runner prism` works.
	@if command -v go >/dev/null; then $(BIN)/python -m deploy.prism; \
		else echo "setup: no Go here, so no Prism"; fi

demo: setup ## the whole loop, live; HEADLESS=1: bounded, writes out/demo/report.json
	$(BIN)/python -m deploy.cli demo $(if $(HEADLESS),--headless)

test: setup lint ## every seam and contract, on real Kafka and Valkey
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: setup ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## measure; ONLY=name: one; writes out/bench/<name>.json
	$(BIN)/python -m tests.bench $(ONLY)

soak: setup ## long runs and kills; ONLY=name, MINUTES=n; writes out/soak/<name>.json
	MINUTES=$(or $(MINUTES),10) $(BIN)/python -m pytest -m soak $(if $(ONLY),-k $(ONLY)) --timeout 0

lock: ## resolve anew: requirements.lock and the jars' locks under deploy/
	$(or $(UV),$(BIN)/uv) pip compile --quiet --upgrade pyproject.toml --group dev --generate-hashes \
		--no-annotate --no-header -o requirements.lock
	$(BIN)/python -m deploy.jars

clean: ## remove what was built; the stack must be down
	rm -rf out build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
