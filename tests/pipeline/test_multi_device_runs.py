"""hardware=ddp and hardware=fsdp: what is refused, and commands in two processes that make one run."""

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
    "overrides, message",
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
def test_impossible_multi_device_run_is_refused_with_a_remedy(overrides, message):
    with pytest.raises(MannersError) as error:
        validate.validate_config(compose(*overrides))
    assert message in str(error.value)


@pytest.mark.parametrize("overrides", [["hardware=ddp", "adapter=qlora"], ["hardware=fsdp", "method=reward"]])
def test_possible_multi_device_runs_pass(overrides):
    validate.validate_config(compose(*overrides))


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_init_distributed_refuses_another_number_of_processes(monkeypatch, method):
    assert init_distributed("cpu", method, 1).size == 1
    with pytest.raises(MannersError, match=r"hardware\.devices=2, and 1 processes were started"):
        init_distributed("cpu", method, 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MannersError, match=r"add hardware=ddp hardware\.devices=3"):
        init_distributed("cpu", method, 1)


def test_exit_with_launcher_exits_when_the_parent_changes(monkeypatch):
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
RUNS = {  # method → hardware, other overrides, launcher
    "sft": ("ddp", ["adapter=lora"], ()),
    "reward": ("fsdp", ["adapter=none"], TORCHRUN),
}


@pytest.mark.long
@pytest.mark.parametrize("method", RUNS)
def test_two_processes_train_the_same_model_in_one_run(tmp_path, method):
    hardware, overrides, launcher = RUNS[method]
    out = tmp_path / "out"
    command = [*COMMAND, *small_strictbot(tmp_path), *overrides, f"method={method}", f"output_dir={out}"]
    train_in_process(*command, "method.per_device_train_batch_size=8", "run_name=one")
    command += [f"hardware={hardware}", "method.per_device_train_batch_size=4", "run_name=two"]
    output = train_with_launcher(*command, launcher=launcher) if launcher else train(*command)
    assert output.count("model, report and figures:") == 1
    client, runs = mlflow_runs(out)
    assert set(runs) == {p.name for p in (out / "runs").iterdir()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    one, two = find_run(out, "one*"), find_run(out, "two*")
    history = client.get_metric_history(runs[two.name].info.run_id, "eval/loss")
    records = [r for r in read_records(two / "metrics.jsonl") if "eval/loss" in r]
    assert [m.step for m in history] == [r["step"] for r in records] == [3, 6]
    (file,) = (one / "model").glob("*.safetensors")
    weights, other_weights = load_file(file), load_file(two / "model" / file.name)
    assert weights.keys() == other_weights.keys()
    for key, weight in weights.items():
        assert other_weights[key].sub(weight).abs().max() < 1e-3, key
