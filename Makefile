# `make quickstart` and `make test` each do all of their own set-up on a machine with Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 5000
QUICKSTART := jobs/train.py experiment=quickstart

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Bytecode is written when a module is first imported: every Ray worker would compile torch and mlflow anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install quickstart test check format ui cluster-requirements clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-26s %s\n", $$1, $$2 }'

install: $(STAMP) ## make .venv with everything, once; PYTHON=... chooses the interpreter
	@:

quickstart: $(STAMP) ## train on the built-in glyphs with two CPU workers, a few minutes
	@$(BIN)/python $(QUICKSTART)

test: $(STAMP) ## the whole test suite
	@$(BIN)/python -m pytest

check: $(STAMP) ## lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p distmetric

format: $(STAMP) ## format the code and mend what the linter can
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

ui: $(STAMP) ## MLflow on this machine for the runs in outputs/; PORT=5000
	@test -f outputs/mlflow.db || { echo "error: no runs in outputs/ yet: make quickstart makes one" >&2; exit 2; }
	@$(BIN)/python -c "import socket; socket.create_server(('127.0.0.1', $(PORT)))" 2>/dev/null || \
	    { echo "error: PORT=$(PORT) is taken: choose another one" >&2; exit 2; }
	@echo "in some seconds: http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning  (Ctrl-C ends it)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true PYTHONWARNINGS=ignore $(BIN)/mlflow ui \
	    --backend-store-uri 'sqlite:///$(CURDIR)/outputs/mlflow.db' --host 127.0.0.1 --port $(PORT) --workers 1

# What every machine of cluster.yaml installs, and nothing else: 64-bit Linux, Python 3.11 or 3.12, CUDA, in the versions
# of constraints.txt. The second file is what builds the few packages that have no wheels.
COMPILE = build/uv/bin/uv pip compile --quiet --no-config --index-url https://pypi.org/simple --generate-hashes \
    --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint constraints.txt \
    --custom-compile-command 'make cluster-requirements'

cluster-requirements: $(STAMP) ## pin what cluster.yaml installs, with hashes, after pyproject.toml or constraints.txt changed
	@$(BIN)/python -m venv --clear build/uv && build/uv/bin/pip install -q uv==0.13.9
	@printf 'boto3\nmlflow[auth]\n' | $(COMPILE) --extra gpu --extra hf --extra export pyproject.toml - -o cluster-requirements.txt
	@printf 'setuptools\nwheel\nhatchling>=1.27\neditables\n' | $(COMPILE) --allow-unsafe - -o cluster-build-requirements.txt
	@rm -rf build/uv

clean: ## remove .venv and caches; outputs/ stays
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find distmetric jobs tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is taken up again. An interpreter counts only if it runs
# (version managers leave commands that do not), is new enough and can make environments. Without --no-compile half
# of the time would go into bytecode of modules that nothing here imports; what is imported is compiled at the end, or
# every process would do it again where PYTHONDONTWRITEBYTECODE is set, as images of containers often have it.
$(STAMP): pyproject.toml constraints.txt
	@found=; recent='sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "import sys, pip; $$recent" 2>/dev/null; then \
	    for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	        if $$python -c "import sys, ensurepip, venv; $$recent" 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "error: no Python >= 3.11 with venv found: install one (Debian: python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	        exit 2; \
	    fi; \
	    $$found -m venv --clear $(VENV); \
	fi
	@echo "installing into $(VENV), once: a few minutes" >&2
	@$(BIN)/python -m pip install -qq --no-compile --constraint constraints.txt --editable '.[dev]'
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c 'import torch._dynamo, ray.train.torch, ray.tune, mlflow.pyfunc, \
	    matplotlib.pyplot, sklearn.manifold, scipy.stats, hydra, faiss, pyarrow.dataset, hypothesis, pytest'
	@touch $(STAMP)
