"""How long a command takes to exit, or until it reports the first training loss.

    clock.py ours help          clock.py trl step          clock.py trl step-135m          clock.py template typo

Each run is a new process, which is killed after its first loss, of the tiny model or of SmolLM2-135M. Wall seconds
count from its start; CPU seconds are those of the process and its children. Ours answers held-out prompts before it
trains.

The commands of TRL and the template are those of their documentation. ``trl sft`` goes through ``accelerate launch``,
which starts Python again; ``trl-script`` is its script without the launcher, the fastest way to run it. The template
trains its MNIST network for one step on random images, and exits.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from prepare import FOLDER, PYTHON, ROOT, ROWS, SMOLLM, TEMPLATE, TINY

OURS = [PYTHON, "train.py"]
TRAIN = [
    "model=tiny", f"output_dir={FOLDER}/ours", "dataset=jsonl", f"dataset.path={ROWS}/train.jsonl", "adapter=lora",
    "method.per_device_train_batch_size=16", "method.logging_steps=1", "resume=false",
]  # fmt: skip
TRL = [
    "--model_name_or_path", TINY, "--dataset_name", ROWS, "--output_dir", f"{FOLDER}/trl", "--use_peft",
    "--lora_r", "16",
    "--lora_target_modules", "all-linear", "--learning_rate", "2e-3", "--per_device_train_batch_size", "16",
    "--max_length", "512", "--logging_steps", "1", "--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false",
    "--report_to", "none", "--save_strategy", "no",
]  # fmt: skip
ONE_STEP = [
    "data._target_=images.Images", "trainer=cpu", "+trainer.max_steps=1", "+trainer.limit_val_batches=0",
    "callbacks=none", "test=false", "extras.print_config=false",
]  # fmt: skip
SCRIPT = [PYTHON, "-m", "trl.scripts.sft"]


def with_smollm(arguments: list[str]) -> list[str]:
    """The same task for SmolLM2-135M."""
    names = {"model=tiny": f"model.name={ROOT / SMOLLM}", TINY: SMOLLM}
    return [names.get(argument, argument) for argument in arguments]


COMMANDS = {
    "ours": {
        "help": [*OURS, "--help"],
        "typo": [*OURS, "method.learning_rte=3"],
        "step": [*OURS, *TRAIN],
        "step-135m": [*OURS, *with_smollm(TRAIN)],
    },
    "ours-plain": {"step": [*OURS, f"output_dir={FOLDER}/ours", "method.logging_steps=1", "resume=false"]},
    "trl": {
        "help": [".venv/bin/trl", "sft", "--help"],
        "typo": [".venv/bin/trl", "sft", *TRL, "--learning_rte", "3"],
        "step": [".venv/bin/trl", "sft", *TRL],
        "step-135m": [".venv/bin/trl", "sft", *with_smollm(TRL)],
    },
    "trl-script": {
        "help": [*SCRIPT, "--help"],
        "typo": [*SCRIPT, *TRL, "--learning_rte", "3"],
        "step": [*SCRIPT, *TRL],
        "step-135m": [*SCRIPT, *with_smollm(TRL)],
    },
    "template": {
        "help": [PYTHON, "src/train.py", "--help"],
        "typo": [PYTHON, "src/train.py", "model.optimizer.lrt=3"],
        "step": [PYTHON, "src/train.py", *ONE_STEP],
    },
}


def first_loss_of_ours(_log: Path) -> bool:
    return any('"train/loss"' in file.read_text() for file in (ROOT / FOLDER / "ours" / "runs").glob("*/metrics.jsonl"))


def first_loss_of_trl(log: Path) -> bool:
    return "'loss'" in log.read_text()


FIRST_LOSS: dict[str, Callable[[Path], bool]] = {
    "ours": first_loss_of_ours,
    "ours-plain": first_loss_of_ours,
    "trl": first_loss_of_trl,
    "trl-script": first_loss_of_trl,
}


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and its descendants."""
    total = 0.0
    for p in [process, *process.children(recursive=True)]:
        times = p.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def measure(side: str, what: str, log: Path) -> dict[str, float]:
    folder = ROOT / TEMPLATE if side == "template" else ROOT
    paths = os.pathsep.join(str(ROOT / p) for p in ("outputs/bench/start/packages", "experiments/bench/start"))
    extra = {"PYTHONPATH": paths} if side == "template" else {}
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | extra
    has_loss = FIRST_LOSS.get(side) if what.startswith("step") else None
    with log.open("w") as out:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(
            [str(ROOT / w) if w == PYTHON else w for w in COMMANDS[side][what]],
            cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        if has_loss is None:
            code = process.wait()
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            if (code == 0) == (what == "typo"):
                sys.exit(f"the command exited with {code}: see {log}")
            return {"wall_s": wall, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
        while not has_loss(log):
            if process.poll() is not None:
                sys.exit(f"the command exited before its first loss: see {log}")
            time.sleep(0.02)
        result = {"wall_s": time.perf_counter() - start, "cpu_s": cpu_seconds(psutil.Process(process.pid))}
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=list(COMMANDS))
    parser.add_argument("what", choices=["help", "typo", "step", "step-135m"])
    parser.add_argument("--seed", type=int, default=0, help="ignored: all runs are equal")
    args = parser.parse_args()
    for run_dir in (ROOT / FOLDER / "ours" / "runs").glob("*"):
        shutil.rmtree(run_dir)
    log = ROOT / FOLDER / f"{args.side}-{args.what}.log"
    result = measure(args.side, args.what, log)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    print(json.dumps({key: round(value, 3) for key, value in result.items()} | {"peak_rss_mb": round(peak)}))


if __name__ == "__main__":
    main()
