"""PPO in two processes equals PPO in one: the same weights, and one run that reports once."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from manners.errors import MannersError
from manners.methods.distributed import ProcessGroup, check_batch_divides, init_distributed
from tests.commands import (
    SMALL_RL,
    find_run,
    mlflow_runs,
    read_records,
    run_two_processes,
    small_strictbot,
    train_in_process,
    train_with_launcher,
)
from tests.methods.ppo import two_processes
from tests.methods.ppo.cases import ppo_config, rloo_config
from tests.methods.ppo.two_processes import CASES, train_cases

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
QUESTIONS = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
# With --multi_gpu accelerate starts several processes on a CPU too, so that the launcher is tested without GPUs.
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2", *QUESTIONS)
LAUNCHERS = {"torchrun": TORCHRUN, "accelerate": (*ACCELERATE, "--multi_gpu")}


@pytest.fixture(scope="module")
def model_folder(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    model.get_input_embeddings().weight.data.mul_(6)  # else all tokens would be about equally likely
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """The weights of each case after training in one process and in two, and the metrics of the one."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    metrics = train_cases(model_folder, one, ProcessGroup())
    run_two_processes(Path(two_processes.__file__), str(model_folder), str(two))
    return one, two, metrics


@pytest.mark.parametrize("name", CASES)
def test_train_ppo_in_two_processes_equals_one(trained, name):
    one, two, metrics = trained
    expected = load_file(one / f"{name}0")
    first, second = load_file(two / f"{name}0"), load_file(two / f"{name}1")
    assert metrics[name]["policy/approxkl_avg"] > 0  # the policy has moved
    for key, weight in expected.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key], weight, atol=1e-4), key


def test_check_batch_divides_refuses_uneven_batches():
    check_batch_divides(rloo_config(batch_size=8, num_generations=4), ProcessGroup(0, 2))
    for config, size in ((ppo_config(batch_size=8), 3), (rloo_config(batch_size=8, num_generations=4), 4)):
        with pytest.raises(MannersError, match=f"batch_size=8 cannot be divided among {size} processes"):
            check_batch_divides(config, ProcessGroup(0, size))


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_init_distributed_refuses_trl_in_two_processes(monkeypatch, method):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MannersError, match=f"method={method} trains in one process"):
        init_distributed("cpu", method)


def test_init_distributed_refuses_a_lone_accelerate_process():
    """accelerate without --multi_gpu starts one process on a CPU, whatever --num_processes says."""
    code = "from manners.methods.distributed import init_distributed as f; f('cpu', 'ppo')"
    command = [sys.executable, *ACCELERATE, "--cpu", "--no_python", sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode and "torchrun --nproc-per-node N train.py" in process.stderr


def test_init_distributed_accepts_accelerate_with_one_process(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert init_distributed("cpu", "ppo").size == 1


# --- The command ---

COMMAND = ["method=ppo", *SMALL_RL, "method.total_episodes=16", "method.eval_steps=1", "method.log_samples_steps=1"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The command in one process, which trains the dependencies too: the output directory and the command."""
    out, data = tmp_path_factory.mktemp("out"), small_strictbot(tmp_path_factory.mktemp("data"))
    command = [*COMMAND, *data, f"output_dir={out}"]
    train_in_process(*command, "run_name=one_process")
    return out, command


@pytest.fixture(scope="module", params=["torchrun", pytest.param("accelerate", marks=pytest.mark.long)])
def two_process_run(one_process, request):
    """The same command in two processes: the output directory, the run's name and what was printed."""
    out, command = one_process
    launcher = LAUNCHERS[request.param]
    return out, request.param, train_with_launcher(*command, f"run_name={request.param}", launcher=launcher)


def test_command_in_two_processes_makes_one_run(two_process_run):
    out, name, output = two_process_run
    assert output.count("model, report and figures:") == 1
    client, runs = mlflow_runs(out)
    assert set(runs) == {p.name for p in (out / "runs").iterdir()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    folder = find_run(out, f"{name}*")
    records = read_records(folder / "metrics.jsonl")
    for metric, steps in (("objective/kl", [1, 2]), ("reward/model", [1, 2]), ("eval/scores", [0, 1, 2])):
        history = client.get_metric_history(runs[folder.name].info.run_id, metric)
        assert sorted(m.step for m in history) == steps == [r["step"] for r in records if metric in r]
    assert {"before_after.md", "curves.png", "lineage.md"} <= {p.name for p in folder.iterdir()}


def test_command_in_two_processes_trains_the_same_model(two_process_run):
    out, name, _ = two_process_run
    expected, weights = (
        load_file(find_run(out, f"{run}*") / "model" / "adapter_model.safetensors") for run in ("one_process", name)
    )
    assert expected.keys() == weights.keys()
    for key, weight in expected.items():
        assert torch.allclose(weights[key], weight, atol=1e-3), key


def test_command_in_two_processes_trains_no_dependency(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MannersError) as error:
        train_in_process(*COMMAND, *small_strictbot(tmp_path), f"output_dir={tmp_path / 'out'}")
    assert str(error.value).startswith("there is no policy run yet. Train it first, in one process: python train.py")
    assert not (tmp_path / "out" / "runs").exists()
