"""How threads should wait for each other: .venv/bin/python experiments/bench/threads.py [--busy 2] [--rounds 2]

An SFT step (8 × 90 tokens) and greedy decoding (32 rows, 24 tokens) of SmolLM2-135M with a LoRA, in bf16 where ``auto``
takes it, with each way of waiting, in processes of their own that take turns. ``--busy`` keeps as many other processes
at work, each on one thread. Printed are medians of seconds by the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable

WAYS = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=10000 (ours)": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(2048, 2048)\nwhile True: a @ a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=0, help="other processes on this machine")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure()))
        return
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(args.busy)]
    seconds: dict[str, list[list[float]]] = defaultdict(list)
    try:
        for _ in range(args.rounds):
            for name, variables in WAYS.items():
                command = [sys.executable, __file__, "--measure"]
                done = subprocess.run(
                    command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True
                )
                seconds[name].append(json.loads(done.stdout.splitlines()[-1]))
    finally:
        for other in others:
            other.kill()
    print(f"| {os.cpu_count()} cores, {args.busy} other processes | SFT step, s | decoding, s |\n| --- | --- | --- |")
    for name, rounds in seconds.items():
        step, decoding = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"| {name} | {step:.2f} | {decoding:.2f} |")


def measure() -> list[float]:
    """Seconds of a step and of decoding, each after a warm-up."""
    import torch

    from manners.models import loading, lora
    from manners.models.generation import Sampling, generate_ids
    from manners.models.logprobs import token_nll
    from manners.runtime.device import bf16_is_faster

    torch.manual_seed(0)
    in_bf16 = bf16_is_faster()
    base = loading.load_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    model = lora.prepare_for_training(base, "lora", 16, 32, 0.0, "all-linear")
    ids, loss_mask = torch.randint(100, 40_000, (8, 90)), torch.zeros(8, 89, dtype=torch.bool)
    loss_mask[:, 45:] = True
    prompts = torch.randint(100, 40_000, (32, 50)).tolist()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16), lora.frozen_weights_in_bf16(model, in_bf16):
            loss = token_nll(model, ids, loss_mask)[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def decode() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16), lora.merged_for_generation(model):
            generate_ids(model, prompts, Sampling(24, (), 0, 0.0), None)

    return [seconds_of(step, 4), seconds_of(decode, 1)]


def seconds_of(work: Callable[[], None], times: int) -> float:
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


if __name__ == "__main__":
    main()
