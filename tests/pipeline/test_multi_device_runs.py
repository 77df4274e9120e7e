"""hardware=ddp and hardware=fsdp: what is refused, and the command with one run that says all once."""

from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from manners.config import validate
from manners.errors import MannersError
from manners.methods import distributed
from manners.methods.distributed import init_distributed
from tests.commands import (
    SMALL,
    find_run,
    mlflow_runs,
    read_records,
    small_strictbot,
    train,
    train_in_process,
    train_with_launcher,
)
from tests.configs import compose

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize(
    "choices, says",
    [
        (["hardware.devices=0"], "must be at least 1"),
        (["hardware=ddp", "method=ppo"], "torchrun --nproc-per-node 2 train.py method=ppo"),
        (["hardware=ddp", "method=rloo"], "accelerate launch"),
        (["hardware=ddp", "method=dpo"], "method=dpo trains in one process: hardware.devices=1"),
        (["hardware=fsdp", "hardware.devices=1"], "set hardware.devices to 2 or more"),
        (["hardware=fsdp", "adapter=qlora"], "hardware=ddp, which gives each device all of them, or adapter=lora"),
        (["hardware=fsdp", "hardware.precision=fp16"], "hardware.precision=bf16 or 32"),
        (["hardware=fsdp", "method.optim=paged_adamw_8bit"], "method.optim=adamw_torch_fused"),
    ],
)
def test_what_cannot_be_shared_out_says_what_to_type_instead(choices, says):
    with pytest.raises(MannersError) as caught:
        validate.validate_config(compose(*choices))
    assert says in str(caught.value)


@pytest.mark.parametrize("choices", [["hardware=ddp", "adapter=qlora"], ["hardware=fsdp", "method=reward"]])
def test_and_the_rest_is_taken(choices):
    validate.validate_config(compose(*choices))


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_as_many_processes_as_the_run_was_made_for(monkeypatch, method):
    assert init_distributed("cpu", method, 1).size == 1
    with pytest.raises(MannersError, match=r"hardware\.devices=2, and 1 processes were started"):
        init_distributed("cpu", method, 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MannersError, match=r"add hardware=ddp hardware\.devices=3"):
        init_distributed("cpu", method, 1)


def test_a_process_whose_launcher_is_killed_ends(monkeypatch):
    """It is handed to another parent."""
    parents, ended = iter([7, 7, 1]), []
    monkeypatch.setattr(distributed, "os", SimpleNamespace(getppid=lambda: next(parents), _exit=ended.append))
    monkeypatch.setattr(distributed, "time", SimpleNamespace(sleep=lambda _: None))
    distributed.exit_with_launcher(7)
    assert ended == [1] and not list(parents)


# --- The command ---

COMMAND = [
    *(*SMALL, "method.max_steps=6", "method.eval_steps=3", "method.logging_steps=2", "method.save_steps=2"),
    "method.per_device_eval_batch_size=4",
]
WAYS = {  # method → what is said beside hardware=, and the launcher
    "sft": ("ddp", ["adapter=lora"], ()),
    "reward": ("fsdp", ["adapter=none"], TORCHRUN),
}


@pytest.mark.long
@pytest.mark.parametrize("method", WAYS)
def test_two_processes_make_one_run_and_the_model_that_one_makes(tmp_path, method):
    sharing, chosen, launcher = WAYS[method]
    out = tmp_path / "out"
    command = [*COMMAND, *small_strictbot(tmp_path), *chosen, f"method={method}", f"output_dir={out}"]
    train_in_process(*command, "method.per_device_train_batch_size=8", "run_name=one")
    both = f"hardware={sharing}", "method.per_device_train_batch_size=4", "run_name=two"
    said = train_with_launcher(*command, *both, launcher=launcher) if launcher else train(*command, *both)
    assert said.count("model, report and figures:") == 1
    client, runs = mlflow_runs(out)
    assert set(runs) == {p.name for p in (out / "runs").iterdir()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    one, two = find_run(out, "one*"), find_run(out, "two*")
    history = client.get_metric_history(runs[two.name].info.run_id, "eval/loss")
    assert [m.step for m in history] == [r["step"] for r in read_records(two / "metrics.jsonl") if "eval/loss" in r] == [3, 6]
    (file,) = (one / "model").glob("*.safetensors")
    weights, theirs = load_file(file), load_file(two / "model" / file.name)
    assert weights.keys() == theirs.keys()
    for key, weight in weights.items():
        assert theirs[key].sub(weight).abs().max() < 1e-3, key
