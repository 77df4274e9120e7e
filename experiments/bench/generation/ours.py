"""Our side of the generation line: the package's native decoding."""

from contextlib import nullcontext

import task
import torch

from manners.models.generation import Sampling, generate_ids
from manners.models.lora import merged_for_generation


def generate(model: torch.nn.Module, prompts: task.Ids, stop_ids: list[int], seed: int | None) -> task.Ids:
    uniforms = None
    if seed is not None:
        uniforms = torch.rand(len(prompts), task.NEW_TOKENS, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(task.NEW_TOKENS, tuple(stop_ids), task.PAD, temperature=0.0 if seed is None else 1.0)
    # It packs the weights, for PPO and for evaluation; chat, which writes one reply at a time, does without.
    with merged_for_generation(model) if len(prompts) > 1 else nullcontext():
        return generate_ids(model, prompts, sampling, uniforms)


def main() -> None:
    task.measure(task.arguments(), generate)


if __name__ == "__main__":
    main()
