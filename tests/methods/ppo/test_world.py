"""Two processes do what one does: the loop to the same weights, and the command with one run that says all once."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from manners.errors import MannersError
from manners.methods.ppo.world import World, join
from tests.commands import ONLINE, ROOT, here, only, records, strictbot, tracked, train
from tests.methods.ppo.together import CASES, play

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


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
def played(model_folder, tmp_path_factory):
    """By one process and by two."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    found = {}
    play(model_folder, alone, World(), found)
    command = [sys.executable, *TWO, "-m", "tests.methods.ppo.together", str(model_folder), str(two)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return alone, two, found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_in_the_weights_of_one(played, name):
    alone, two, found = played
    one, first, second = load_file(alone / f"{name}0"), load_file(two / f"{name}0"), load_file(two / f"{name}1")
    assert found[name]["policy/approxkl_avg"] > 0  # it did move
    for key, weight in one.items():
        assert torch.equal(first[key], second[key]), key  # they never drift apart
        assert torch.allclose(first[key], weight, atol=1e-4), key


def test_a_batch_that_cannot_be_shared_out_is_refused(small_qwen2, tokenizer, tmp_path):
    from manners.methods.ppo.loop import Game, train
    from tests.methods.ppo.cases import policy, ppo, rloo

    for settings, size in ((ppo(batch_size=8), 3), (rloo(batch_size=8, num_generations=4), 4)):
        game = Game(policy(small_qwen2), tokenizer, [0], {}, settings, 0, World(0, size))
        with pytest.raises(MannersError, match=f"batch_size=8 cannot be shared out among {size} processes"):
            train(game, [], [], tmp_path, print, print, print)


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_what_trains_in_one_process_says_so(monkeypatch, method):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MannersError, match=f"method={method} trains in one process"):
        join("cpu", method)


# --- The command ---

COMMAND = ["method=ppo", *ONLINE, "method.total_episodes=16", "method.eval_steps=1", "method.log_samples_steps=1"]


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """In one process, which trains the stages too; then by two."""
    out, data = tmp_path_factory.mktemp("out"), strictbot(tmp_path_factory.mktemp("data"))
    here(*COMMAND, *data, f"output_dir={out}", "run_name=alone")
    said = train(*COMMAND, *data, f"output_dir={out}", "run_name=two", launcher=TWO)
    return out, said


def test_two_processes_make_one_run(commanded):
    out, said = commanded
    assert said.count("model, report and figures:") == 1
    client, runs = tracked(out)
    assert len(runs) == 4 and {run.info.status for run in runs.values()} == {"FINISHED"}
    folder = only(out, "two*")
    written = records(folder / "metrics.jsonl")
    for name, steps in (("objective/kl", [1, 2]), ("reward/model", [1, 2]), ("eval/scores", [0, 1, 2])):
        history = client.get_metric_history(runs[folder.name].info.run_id, name)
        assert sorted(m.step for m in history) == steps == [r["step"] for r in written if name in r]
    assert {"before_after.md", "curves.png", "lineage.md"} <= {p.name for p in folder.iterdir()}


def test_and_in_it_the_model_that_one_process_makes(commanded):
    out, _ = commanded
    one, two = (load_file(only(out, f"{name}*") / "model" / "adapter_model.safetensors") for name in ("alone", "two"))
    assert one.keys() == two.keys()
    for key, weight in one.items():
        assert torch.allclose(two[key], weight, atol=1e-3), key


def test_stages_that_are_not_there_yet_are_not_trained_by_two(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MannersError) as caught:
        here(*COMMAND, *strictbot(tmp_path), f"output_dir={tmp_path / 'out'}")
    assert str(caught.value).startswith(
        "the policy run is not there yet. Train it first, in one process: python train."
    )
    assert not (tmp_path / "out").exists()
