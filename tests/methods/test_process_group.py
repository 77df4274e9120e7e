"""Two processes do what one does: PPO trains the same weights, and the command makes one run that reports once."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manners.errors import MannersError
from manners.methods.distributed import ProcessGroup, check_batch_divides, init_distributed
from tests import commands
from tests.commands import (
    SMALL_RL,
    train_in_process,
    train_with_launcher,
    find_run,
    read_records,
    small_strictbot,
    mlflow_runs,
)
from tests.methods.ppo import together
from tests.methods.ppo.together import CASES, play

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SAID = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
# Its --multi_gpu starts processes on a CPU as well, which is how the launcher of GPUs is seen to work without any.
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "2", *SAID)
LAUNCHERS = {"torchrun": TWO, "accelerate": (*ACCELERATE, "--multi_gpu")}


@pytest.fixture(scope="module")
def model_folder(tokenizer, tmp_path_factory):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Qwen2Config(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True, **size
    )
    model = Qwen2ForCausalLM(config)
    model.get_input_embeddings().weight.data.mul_(6)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """By one process and by two."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    found = {}
    play(model_folder, alone, ProcessGroup(), found)
    commands.run_two_processes(Path(together.__file__), str(model_folder), str(two))
    return alone, two, found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_in_the_weights_of_one(trained, name):
    alone, two, found = trained
    one, first, second = load_file(alone / f"{name}0"), load_file(two / f"{name}0"), load_file(two / f"{name}1")
    assert found[name]["policy/approxkl_avg"] > 0  # it did move
    for key, weight in one.items():
        assert torch.equal(first[key], second[key]), key  # they never drift apart
        assert torch.allclose(first[key], weight, atol=1e-4), key


def test_batch_that_processes_cannot_divide_is_refused():
    from tests.methods.ppo.cases import ppo, rloo

    check_batch_divides(rloo(batch_size=8, num_generations=4), ProcessGroup(0, 2))
    for settings, size in ((ppo(batch_size=8), 3), (rloo(batch_size=8, num_generations=4), 4)):
        with pytest.raises(MannersError, match=f"batch_size=8 cannot be divided among {size} processes"):
            check_batch_divides(settings, ProcessGroup(0, size))


def test_dpo_refuses_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MannersError, match="method=dpo trains in one process"):
        init_distributed("cpu", "dpo")


# --- The command ---

COMMAND = ["method=ppo", *SMALL_RL, "method.total_episodes=16", "method.eval_steps=1", "method.log_samples_steps=1"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """In one process, which trains the stages too."""
    out, data = tmp_path_factory.mktemp("out"), small_strictbot(tmp_path_factory.mktemp("data"))
    command = [*COMMAND, *data, f"output_dir={out}"]
    train_in_process(*command, "run_name=alone")
    return out, command


@pytest.fixture(scope="module", params=["torchrun", pytest.param("accelerate", marks=pytest.mark.long)])
def commanded(alone, request):
    """The same by two."""
    out, command = alone
    return (
        out,
        request.param,
        train_with_launcher(*command, f"run_name={request.param}", launcher=LAUNCHERS[request.param]),
    )


def test_command_in_two_processes_makes_one_run(commanded):
    out, name, said = commanded
    assert said.count("model, report and figures:") == 1
    client, runs = mlflow_runs(out)
    assert set(runs) == {p.name for p in (out / "runs").iterdir()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    folder = find_run(out, f"{name}*")
    written = read_records(folder / "metrics.jsonl")
    for metric, steps in (("objective/kl", [1, 2]), ("reward/model", [1, 2]), ("eval/scores", [0, 1, 2])):
        history = client.get_metric_history(runs[folder.name].info.run_id, metric)
        assert sorted(m.step for m in history) == steps == [r["step"] for r in written if metric in r]
    assert {"before_after.md", "curves.png", "lineage.md"} <= {p.name for p in folder.iterdir()}


def test_command_in_two_processes_trains_the_model_of_one(commanded):
    out, name, _ = commanded
    one, two = (load_file(find_run(out, f"{n}*") / "model" / "adapter_model.safetensors") for n in ("alone", name))
    assert one.keys() == two.keys()
    for key, weight in one.items():
        assert torch.allclose(two[key], weight, atol=1e-3), key


def test_accelerate_that_starts_one_of_several_is_refused():
    """accelerate without --multi_gpu, on a CPU."""
    code = "from manners.methods.distributed import init_distributed as f; f('cpu', 'ppo')"
    command = [sys.executable, *ACCELERATE, "--cpu", "--no_python", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "torchrun --nproc-per-node N train.py" in done.stderr


def test_accelerate_may_start_one_process_as_asked(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert init_distributed("cpu", "ppo").size == 1


def test_missing_dependency_is_not_trained_by_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MannersError) as caught:
        train_in_process(*COMMAND, *small_strictbot(tmp_path), f"output_dir={tmp_path / 'out'}")
    assert str(caught.value).startswith("there is no policy run yet. Train it first, in one process: python train.")
    assert not (tmp_path / "out").exists()
