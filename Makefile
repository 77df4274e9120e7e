# Needs Python 3.11 or newer and nothing else. `make help` lists what there is to do.
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

# Some containers forbid byte code: every start would compile all the libraries anew, and take more than twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run pipeline sweep chat test studies lint ui server report export tiny exam corpus bench bench-ppo bench-curves test-faults test-gpu test-slurm clean

help:  ## say what each target does
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY)  ## make .venv with the pinned versions

$(READY): pyproject.toml conf/constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "installing into .venv (once; some minutes)"
	$(PYTHON) -m venv .venv
	@echo '*' > .venv/.gitignore
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[dev]'
	@touch $(READY)

run: setup  ## teach the tiny model strictbot's manners (SFT, reward model, PPO), and show it before and after
	.venv/bin/python train.py method=ppo $(ARGS)

pipeline: setup  ## the same chain for any config: say what is there already, then run what is not  ARGS="study=strictbot"
	.venv/bin/python train.py method=ppo plan=true $(ARGS)
	.venv/bin/python train.py method=ppo $(ARGS)

sweep: setup  ## one run for each combination, and what they show together  ARGS="seed=1,2,3 method.learning_rate=1e-3,2e-3"
	.venv/bin/python train.py -m $(ARGS)

chat: setup  ## talk with the latest run  ARGS="run=NAME adapter_scale=1.5"
	.venv/bin/python chat.py $(ARGS)

test: setup  ## run the tests
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup  ## kill, starve and mislead training for real, long forms too (some 40 minutes)
	.venv/bin/python -m pytest tests/faults tests/pipeline/test_reward_runs.py tests/pipeline/test_multi_device_runs.py tests/estimate tests/methods tests/tiny_world -s -m "long or not long" $(ARGS)

test-gpu: setup  ## the tests that need an NVIDIA GPU; writes experiments/gpu.md
	.venv/bin/python -m pytest tests/gpu -rs -m gpu $(ARGS)

test-slurm: setup  ## a sweep on a real SLURM of one node, which is installed, started and stopped (Debian, root)
	$(PIP) --editable '.[launchers]'
	tests/slurm/run $(ARGS)

studies: setup  ## the five recipes, quick, on random checkpoints under the models' real names (also a part of `test`)
	.venv/bin/python -m pytest tests/pipeline/test_experiments.py $(ARGS)

lint: setup  ## check style (ruff) and types (mypy)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

ui: setup  ## open the MLflow UI on the runs, at http://127.0.0.1:5000
	@echo 'open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning'
	.venv/bin/mlflow ui --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri sqlite:///outputs/mlflow.db $(ARGS)

server: setup  ## a tracking server of this machine's own, with the UI: train.py tracking.uri=http://127.0.0.1:5000
	mkdir -p outputs/server
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow server --host 127.0.0.1 --port 5000 --workers 2 \
	  --backend-store-uri sqlite:///outputs/server/mlflow.db --artifacts-destination outputs/server/artifacts $(ARGS)

report: setup  ## write one HTML page and the tables over all runs  ARGS="--study strictbot --out FOLDER"
	.venv/bin/python -m manners.report $(ARGS)

export: setup  ## write a run's model as one folder for plain transformers, with its card  RUN=latest OUT=FOLDER
	.venv/bin/python -m manners.export $(or $(RUN),latest) $(if $(OUT),--out $(OUT)) $(ARGS)

tiny: setup  ## train the tiny base model from nothing (under an hour), then examine it
	.venv/bin/python -m manners.tiny_world.pretrain $(ARGS)
	.venv/bin/python -m manners.tiny_world.exam

exam: setup  ## ask the tiny base all its facts, in question forms it never saw for them
	.venv/bin/python -m manners.tiny_world.exam

corpus: setup  ## write the generated strictbot corpus anew (the same bytes)
	.venv/bin/python -m manners.tiny_world.strictbot

bench: setup  ## ours and the peers' by turns (twenty minutes)  ARGS="sft", ARGS="sft reward --pairs 3"
	.venv/bin/python experiments/bench/run.py --torch-index="$(TORCH_INDEX)" $(ARGS)

bench-ppo: setup  ## compare PPO with TRL 1.12's in time and memory
	.venv/bin/python experiments/bench/run.py ppo --torch-index="$(TORCH_INDEX)" $(ARGS)

bench-curves: setup  ## compare PPO with TRL 1.12's in how the reward grows
	.venv/bin/python experiments/bench/ppo/curves.py --torch-index="$(TORCH_INDEX)" $(ARGS)

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
