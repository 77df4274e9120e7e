# Needs Python 3.11 or newer and nothing else. `make help` lists the targets.
#
# PYTHON       the interpreter that makes .venv                   make run PYTHON=python3.12
# TORCH_INDEX  where pip finds torch, by default its usual index. On Linux that is the build for CUDA; without a GPU
#              give the address of PyTorch's CPU builds (it ends in /whl/cpu) and nothing of CUDA is downloaded.
# ARGS         options for the command of a target                make run ARGS="seed=2"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
ARGS ?=
PIP = .venv/bin/pip install --quiet --disable-pip-version-check --no-compile --constraint conf/constraints.txt
READY = .venv/ready
XDIST = --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Some containers forbid byte code: every start would compile all the libraries anew, and take more than twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run plan sweep chat test test-fast lint ui server report export tiny exam corpus bench bench-ppo bench-curves test-faults test-gpu test-slurm clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY)  ## create .venv with the pinned versions

$(READY): pyproject.toml conf/constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "installing into .venv (once; some minutes)"
	$(PYTHON) -m venv .venv
	@echo '*' > .venv/.gitignore
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[dev]'
	@touch $(READY)

run: setup  ## SFT, reward model and PPO of the tiny model on strictbot, with a before/after report
	.venv/bin/python train.py method=ppo $(ARGS)

plan: setup  ## print which runs a command would reuse and which it would train  ARGS="experiment=strictbot"
	.venv/bin/python train.py method=ppo plan=true $(ARGS)

sweep: setup  ## one run for each combination of values, nested under one MLflow run  ARGS="seed=1,2,3 method.learning_rate=1e-3,2e-3"
	.venv/bin/python train.py -m $(ARGS)

chat: setup  ## chat with the latest run  ARGS="run=NAME adapter_scale=1.5"
	.venv/bin/python chat.py $(ARGS)

test: setup  ## run the tests
	.venv/bin/python -m pytest $(XDIST) $(ARGS)

test-fast: setup  ## run the fast tests (under two minutes)
	.venv/bin/python -m pytest $(XDIST) -m "not slow and not long" $(ARGS)

test-faults: setup  ## kill, starve and mislead training for real (some 40 minutes)
	.venv/bin/python -m pytest tests/faults tests/pipeline/test_reward_runs.py tests/pipeline/test_multi_device_runs.py tests/estimate tests/methods tests/tiny_world -s -m "long or not long" $(ARGS)

test-gpu: setup  ## the tests that need an NVIDIA GPU; writes experiments/gpu.md
	.venv/bin/python -m pytest tests/gpu -rs -m gpu $(ARGS)

test-slurm: setup  ## a sweep on a real SLURM of one node, which is installed, started and stopped (Debian, root)
	$(PIP) --editable '.[launchers]'
	tests/slurm/run $(ARGS)

lint: setup  ## check style (ruff) and types (mypy)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

ui: setup  ## open the MLflow UI on the runs, at http://127.0.0.1:5000
	@echo 'open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning'
	.venv/bin/mlflow ui --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri sqlite:///outputs/mlflow.db $(ARGS)

server: setup  ## a tracking server on this machine: train.py tracking.uri=http://127.0.0.1:5000
	mkdir -p outputs/server
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow server --host 127.0.0.1 --port 5000 --workers 2 \
	  --backend-store-uri sqlite:///outputs/server/mlflow.db --artifacts-destination outputs/server/artifacts $(ARGS)

report: setup  ## one HTML page and tables over all runs  ARGS="--study strictbot --out FOLDER"
	.venv/bin/python -m manners.report $(ARGS)

export: setup  ## write a run's model as one folder for plain transformers, with a model card  RUN=latest OUT=FOLDER
	.venv/bin/python -m manners.export $(or $(RUN),latest) $(if $(OUT),--out $(OUT)) $(ARGS)

tiny: setup  ## train the tiny base model from scratch (under an hour), then examine it
	.venv/bin/python -m manners.tiny_world.pretrain $(ARGS)
	.venv/bin/python -m manners.tiny_world.exam

exam: setup  ## test the tiny base model on all its facts, in question forms it never saw for them
	.venv/bin/python -m manners.tiny_world.exam

corpus: setup  ## regenerate the strictbot corpus (the same bytes)
	.venv/bin/python -m manners.tiny_world.strictbot

bench: setup  ## compare with TRL and others, interleaved (twenty minutes)  ARGS="sft", ARGS="sft reward --pairs 3"
	.venv/bin/python experiments/bench/run.py --torch-index="$(TORCH_INDEX)" $(ARGS)

bench-ppo: setup  ## compare PPO with TRL 1.12 in time and memory
	.venv/bin/python experiments/bench/run.py ppo --torch-index="$(TORCH_INDEX)" $(ARGS)

bench-curves: setup  ## compare PPO with TRL 1.12 in reward
	.venv/bin/python experiments/bench/ppo/curves.py --torch-index="$(TORCH_INDEX)" $(ARGS)

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
