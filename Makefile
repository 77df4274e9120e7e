# Needs Python 3.11 or newer and nothing else. `make help` lists the targets.
#
# PYTHON       the interpreter that creates .venv                make run PYTHON=python3.12
# TORCH_INDEX  package index for torch (default: pip's). On Linux its build is for CUDA; without a GPU, the index of
#              PyTorch's CPU builds (its URL ends in /whl/cpu) saves the download of CUDA.
# ARGS         options for the command of a target               make run ARGS="seed=2"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
ARGS ?=
# Of export alone, and never from the environment: nobody pushes to the hub by a variable that was set for another tool.
RUN =
OUT =
HUB =
GGUF =
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out PYTHON TORCH_INDEX ARGS RUN OUT HUB GGUF LLAMA_CPP MAKEFLAGS SHELL,$(GIVEN))
$(if $(UNKNOWN),$(error $(UNKNOWN): no variable of this Makefile. There are PYTHON, TORCH_INDEX, ARGS, and of export RUN, OUT, HUB, GGUF and LLAMA_CPP))

PIP = .venv/bin/pip install --quiet --disable-pip-version-check --no-compile --constraint conf/constraints.txt
READY = .venv/ready
MODELS = HuggingFaceTB/SmolLM2-135M-Instruct
XDIST = --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Some containers disable bytecode caches: every start would compile all libraries and take more than twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run plan sweep chat web test test-fast lint ui server report export tiny exam corpus bench bench-ppo \
  bench-curves test-faults test-gpu test-slurm clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(READY)  ## create .venv with the pinned versions

$(READY): pyproject.toml conf/constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "installing into .venv (once; takes a few minutes)"
	$(PYTHON) -m venv .venv
	@echo '*' > .venv/.gitignore
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[dev]'
	@touch $(READY)

run: setup  ## SFT, reward model and PPO of SmolLM2-135M on strictbot, with a before/after report
	@if .venv/bin/python -m manners.runtime.model_files $(MODELS); then run=method=ppo; else \
	  echo 'so the packaged tiny model is taught instead, about its own small world'; run=experiment=strictbot_tiny; fi; \
	  set -x; .venv/bin/python train.py $$run $(ARGS)

plan: setup  ## print which runs a command would reuse and which it would train  ARGS="experiment=strictbot"
	.venv/bin/python train.py $(or $(ARGS),method=ppo) plan=true

sweep: setup  ## one run for each combination of values, nested under one MLflow run  ARGS="seed=1,2,3 method.learning_rate=1e-3,2e-3"
	.venv/bin/python train.py -m $(ARGS)

chat: setup  ## chat with the latest run  ARGS="run=NAME adapter_scale=1.5"
	.venv/bin/python chat.py $(ARGS)

web: setup  ## compare models and vote on replies in a browser  ARGS="run=[RUN,RUN] votes=votes.jsonl"
	.venv/bin/python -m manners.web $(ARGS)

test: setup  ## run all tests but the long ones
	.venv/bin/python -m pytest $(XDIST) $(ARGS)

test-fast: setup  ## run the fast tests (under two minutes)
	.venv/bin/python -m pytest $(XDIST) -m "not slow and not long" $(ARGS)

test-faults: setup  ## fault injection (kills, full disks, lost servers, hostile files) and the long tests (some 40 minutes)
	.venv/bin/python -m pytest tests/faults tests/pipeline/test_reward_runs.py tests/pipeline/test_multi_device_runs.py tests/estimate tests/methods tests/models tests/tiny_world -s -m "long or not long" $(ARGS)

test-gpu: setup  ## run the tests that need an NVIDIA GPU; writes experiments/gpu.md
	.venv/bin/python -m pytest tests/gpu -rs -m gpu $(ARGS)

test-slurm: setup  ## run a sweep on a real one-node SLURM, which is installed, started and stopped (Debian, root)
	$(PIP) --editable '.[launchers]'
	tests/slurm/run $(ARGS)

lint: setup  ## check style (ruff) and types (mypy)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

ui: setup  ## serve the MLflow UI for outputs/ at http://127.0.0.1:5000
	@echo 'open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning'
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow ui --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri sqlite:///outputs/mlflow.db $(ARGS)

server: setup  ## serve a local MLflow tracking server with its UI: train.py tracking.uri=http://127.0.0.1:5000
	mkdir -p outputs/server
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow server --host 127.0.0.1 --port 5000 --workers 2 \
	  --backend-store-uri sqlite:///outputs/server/mlflow.db --artifacts-destination outputs/server/artifacts $(ARGS)

report: setup  ## write an HTML page and tables over all runs  ARGS="--study strictbot --out FOLDER"
	.venv/bin/python -m manners.report $(ARGS)

export: setup  ## write a run's model with a model card, as a folder for plain transformers  RUN=latest OUT=FOLDER GGUF=q8_0 HUB=me/name
	.venv/bin/python -m manners.export $(or $(RUN),latest) $(if $(OUT),--out $(OUT)) \
	  $(if $(GGUF),--gguf $(GGUF)) $(if $(HUB),--hub $(HUB)) $(ARGS)

tiny: setup  ## train the tiny base model from scratch (under an hour), then test its knowledge
	.venv/bin/python -m manners.tiny_world.pretrain $(ARGS)
	.venv/bin/python -m manners.tiny_world.exam

exam: setup  ## test the tiny base model on all its facts, with question forms that it did not see for them
	.venv/bin/python -m manners.tiny_world.exam

corpus: setup  ## regenerate the strictbot corpus (byte-identical)
	.venv/bin/python -m manners.tiny_world.strictbot

bench: setup  ## benchmark against TRL and others (twenty minutes)  ARGS="sft", ARGS="sft reward --pairs 3"
	.venv/bin/python experiments/bench/run.py --torch-index="$(TORCH_INDEX)" $(ARGS)

bench-ppo: setup  ## benchmark PPO against TRL 1.12: time and memory
	.venv/bin/python experiments/bench/run.py ppo --torch-index="$(TORCH_INDEX)" $(ARGS)

bench-curves: setup  ## benchmark PPO against TRL 1.12: reward curves
	.venv/bin/python experiments/bench/ppo/curves.py --torch-index="$(TORCH_INDEX)" $(ARGS)

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
